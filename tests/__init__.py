"""The test suite: core and sim are pure, process starts real processes, compat runs foreign code, gpu needs a card."""
