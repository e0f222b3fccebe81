"""
The parameters of `auto`; one setting for all workloads.

Chosen on the public half of GenTD26, on copies with jittered arrivals, for four fleets at once, and on seeds 0 to 29
of a synthetic generator; what was tried is in benchmarks/results/routing_study.md. All but ``locality`` are flat:
twice or half the value moves loads and latency along one line.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Knobs:
    """See the module; symbols are those of the study."""

    locality: float = 1.0
    """The users' knob, `routing.locality`: scales the price of further copies. Higher: fewer loads, longer waits."""
    price: float = 52.0
    """Request-seconds that a further copy must earn per second of mean load, on a fleet that is fully busy."""
    busy_power: float = 1.3
    """The price grows with the share of time that runners execute, to this power."""
    short_power: float = 1.3
    """The price falls when loads are shorter than executions, with this power of the ratio."""
    head_start: float = 6.0
    """C: seconds of precedence per second of own execution; 0 is pure order of arrival."""
    load_head_start: float = 12.0
    """The same per second of own load."""
    head_start_max: float = 25.0
    """H: no head start is longer than so many times the fleet's mean execution and load together."""
    scarce: float = 3.0
    """Of two models that a free runner could run, one that others hold, too, steps back so many executions per copy."""
    horizon: float = 16.0
    """Phi: a copy's value counts for the time in which this many requests per slot arrive."""
    burst: float = 3.0
    """Beta: by how much the offered load of a model is taken higher than its mean."""
    spare: float = 0.7
    """What a second copy is worth when victims are chosen, as a share of what it was worth loading."""
    relief: float = 0.3
    """How much of the waiting that a copy spares the other models of its holders counts as saved."""
    balance: float = 1.0
    """Request-seconds per second of backlog when choosing the runner for a load."""
