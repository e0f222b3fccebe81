"""The process behind falctl up: spawns, pins, watches and restarts; no HTTP framework, no torch."""
