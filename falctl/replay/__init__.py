"""What `falctl replay` does: the real scheduler on a virtual clock, over a recorded trace."""
