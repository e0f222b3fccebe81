"""`SimulatedModels` with two slots."""

from runners.simulated import SimulatedModels


class Joining(SimulatedModels):
    """So that two requests can want one model at the same time."""

    max_multiplexing = 2
