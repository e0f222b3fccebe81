"""Webhooks of queued jobs: signed, delivered until somebody takes them, at least once."""
