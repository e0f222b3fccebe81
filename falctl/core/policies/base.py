"""What a policy is, and what it may look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from falctl.core.costs import Costs
from falctl.core.demand import Demand
from falctl.core.events import Failure
from falctl.core.fleet import Fleet, Runner
from falctl.core.policies.space import may_take
from falctl.core.queue import WaitingQueue
from falctl.core.refusals import Refusal, Refusals
from falctl.core.sources import Source, Stock
from falctl.core.types import Hint, RequestId, RunnerId

CHANGES_MAX: Final = 1024
"""Models noted one by one; beyond it everything has changed."""

Standing: TypeAlias = Literal[
    "warm", "warm, busy", "loading it", "open", "no room", "refused it", "busy", "takes nothing"
]
"""
How a runner stands to a model at one instant. warm: it holds it and has a free slot; open: it could begin a load, or
a cold execution, now; no room: it could if there were something to evict; refused it: it has said lately that there is no
room for it there, or one like it has; takes nothing: it drains or is not heard of.
"""


@dataclass(slots=True)
class Candidate:
    """
    A runner as it was weighed for one move; None stands for a figure that was not asked for.

    Nobody changes one. It is not frozen because every decision makes some, and freezing takes several times as long.
    ``cost``, ``loss``, ``saves`` and ``price`` are in request-seconds.
    """

    runner: RunnerId
    standing: Standing
    cost: float | None = None
    """What was compared: of several candidates that have one, the least is chosen."""
    backlog_s: float | None = None
    """Until it has drained what runs and what waits for it."""
    evict: tuple[Hint, ...] = ()
    """What would have to go for a load."""
    loss: float = 0.0
    """What those victims are worth keeping for."""
    saves: float | None = None
    """What a further copy on it would save; it is loaded if that exceeds ``price`` plus ``loss``."""
    price: float | None = None
    source: Source | None = None
    """Where a load on it would come from."""


@dataclass(frozen=True, slots=True)
class Execute:
    """A waiting request and the runner with a free slot that it goes to; ``reason`` in a few words, for people."""

    request: RequestId
    runner: RunnerId
    reason: str
    candidates: tuple[Candidate, ...] = field(default=(), compare=False)
    """Who was compared, if the policy says."""


@dataclass(frozen=True, slots=True)
class LoadModel:
    """A model, the runner that is to load it, and what it evicts first."""

    hint: Hint
    runner: RunnerId
    evict: tuple[Hint, ...]
    reason: str
    candidates: tuple[Candidate, ...] = field(default=(), compare=False)


Move: TypeAlias = Execute | LoadModel


@dataclass(slots=True)
class Changes:
    """
    What has happened to a `State` since its policy last cleared this, for a policy that carries figures over.

    Arrivals, dispatches, releases, loads and hints change little and are noted one by one; anything else changes
    ``all``, and so does more than anybody reads.
    """

    all: bool = True
    models: set[Hint] = field(default_factory=set)
    """Models whose queue, copies or costs are not what they were."""
    wanted: set[Hint] = field(default_factory=set)
    """Those of them for which a load may have become worth more."""
    runners: set[RunnerId] = field(default_factory=set)
    """Runners whose slots, loads or models are not what they were."""
    moved: set[Hint] = field(default_factory=set)
    """Models that some runner would load from elsewhere than before."""

    def note(self, model: Hint | None, runner: RunnerId | None = None, *, wanted: bool = False) -> None:
        """Note that something about *model*, on *runner*, has changed."""
        if runner is not None:
            self.runners.add(runner)
        if model is not None:
            self.models.add(model)
            if wanted:
                self.wanted.add(model)
            self.all = self.all or len(self.models) > CHANGES_MAX

    def move(self, model: Hint, *, nearer: bool) -> None:
        """Note that a load of *model* comes from elsewhere now; *nearer*: it has become cheaper."""
        self.note(model, wanted=nearer)
        self.moved.add(model)

    def clear(self) -> None:
        """Begin anew."""
        self.all = False
        self.moved.clear()
        self.models.clear()
        self.wanted.clear()
        self.runners.clear()


@dataclass(slots=True)
class State:
    """Everything that is known, owned by the scheduler. Nothing in it tells the future."""

    queue: WaitingQueue = field(default_factory=WaitingQueue)
    fleet: Fleet = field(default_factory=Fleet)
    costs: Costs = field(default_factory=Costs)
    demand: Demand = field(default_factory=Demand)
    changes: Changes = field(default_factory=Changes)
    refusals: Refusals = field(default_factory=Refusals)

    def avoids(self, hint: Hint | None, runner: Runner) -> bool:
        """
        Return whether *hint* had better go to another than *runner*, which has no room for it.

        If no other is left it may go anywhere: what is not answered by then is to hear why.
        """
        if hint is None or self.refusals.of(hint, runner) is None:
            return False
        return bool(self.fleet.returning) or self.refused_everywhere(hint) is None

    def refused_everywhere(self, hint: Hint) -> Refusal | None:
        """Return the latest refusal of *hint* if no runner that could make room for it, by what is known, is worth asking."""
        runners = self.fleet.runners.values()
        able = (runner for runner in runners if may_take(runner, hint, fleet=runners, costs=self.costs))
        return self.refusals.everywhere(hint, able)

    def refused(self, hint: Hint, runner: Runner, least_bytes: int, failure: Failure, *, now: float) -> None:
        """*runner* says that it has no room for *hint*, which takes *least_bytes* at least."""
        self.refusals.note(hint, runner, least_bytes, failure, now=now)
        self.changes.all = True

    def found(self, runner: Runner) -> None:
        """Take in that *runner* holds what it holds."""
        hints = runner.hints or ()
        self.fleet.found(hints)
        self.refusals.found(hints, runner.runner)

    def take_stock(self, runner: Runner, stock: Stock) -> None:
        """Take in what the host of *runner* tells of its models."""
        for hint in runner.in_ram ^ stock.in_ram:
            self.changes.move(hint, nearer=hint in stock.in_ram)
        runner.in_ram = stock.in_ram
        for hint, size_bytes in self._larger(stock):
            self.costs.declare(hint, size_bytes)
            self.changes.all = True

    def is_news(self, runner: Runner, stock: Stock) -> bool:
        """Return whether *stock* of *runner* says anything that is not known."""
        return stock.in_ram != runner.in_ram or any(self._larger(stock))

    def _larger(self, stock: Stock) -> Iterator[tuple[Hint, int]]:
        # Cards of several kinds keep one model in several dtypes; what is counted must do for all of them.
        return (
            (hint, size_bytes)
            for hint, size_bytes in stock.sizes.items()
            if size_bytes > (self.costs.size_bytes(hint) or 0)
        )


class Policy(Protocol):
    """Decides what happens next. Asked after every event, again and again until it answers None."""

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move at instant *now* (monotonic seconds); None: everything that waits waits on."""
        ...


@runtime_checkable
class Weighs(Protocol):
    """What a policy may offer besides: to say, without deciding, how it would weigh the runners for a model."""

    def weigh(self, state: State, hint: Hint, *, now: float) -> tuple[Candidate, ...]:
        """Return every runner as it stands to *hint*, which somebody waits for."""
        ...
