"""What a policy is, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from falctl.core.costs import Costs
from falctl.core.demand import Demand
from falctl.core.fleet import Fleet
from falctl.core.queue import WaitingQueue
from falctl.core.types import Hint, RequestId, RunnerId


@dataclass(frozen=True, slots=True)
class Execute:
    """A waiting request and the runner with a free slot that it goes to; ``reason`` in a few words, for people."""

    request: RequestId
    runner: RunnerId
    reason: str


@dataclass(frozen=True, slots=True)
class LoadModel:
    """A model, the runner that is to load it, and what it evicts first."""

    hint: Hint
    runner: RunnerId
    evict: tuple[Hint, ...]
    reason: str


Move: TypeAlias = Execute | LoadModel


@dataclass(slots=True)
class State:
    """Everything that is known, owned by the scheduler. Nothing in it tells the future."""

    queue: WaitingQueue = field(default_factory=WaitingQueue)
    fleet: Fleet = field(default_factory=Fleet)
    costs: Costs = field(default_factory=Costs)
    demand: Demand = field(default_factory=Demand)


class Policy(Protocol):
    """Decides what happens next. Asked after every event, again and again until it answers None."""

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move at instant *now* (monotonic seconds); None: everything that waits waits on."""
        ...
