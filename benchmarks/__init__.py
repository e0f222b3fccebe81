"""Measurements: each module prints its figures against a named baseline; `python -m benchmarks.NAME`."""
