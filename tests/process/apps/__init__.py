"""Tiny apps that misbehave in one way each."""
