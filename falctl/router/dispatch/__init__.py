"""Whom a request waits for: the apps, the scheduler of each, and what it has learnt."""
