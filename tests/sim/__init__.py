"""Whole-fleet simulation: one seed, one history, every invariant after every event."""
