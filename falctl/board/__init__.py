"""Shared memory between the processes: the fleet's state, readable by all."""
