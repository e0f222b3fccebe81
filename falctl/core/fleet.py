"""What the scheduler knows about the runners: slots, hints, and who was served last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from falctl.core.sources import Source, Tier, bases
from falctl.core.types import NO_CAPS, Caps, Epoch, Hint, RequestId, RunnerId

LAST_SERVED_MAX: Final = 4096
"""Hints remembered for apps without provide_hints; the least recently served is forgotten first."""
USED_MAX: Final = 4096
UNLOADABLE_MAX: Final = 4096
"""The same, by runner, and for models that cannot be loaded or are not listed: anybody's request may name a model that is none."""


@dataclass(frozen=True, slots=True)
class Running:
    """A request in a slot. ``started_at`` is when we sent it, or learnt of it."""

    hint: Hint | None
    started_at: float
    warm: bool = False
    source: Source = "disk"
    """Where its model would have come from, if it was not warm."""


@dataclass(slots=True)
class Loaded:
    """A load job that ended well: when, how long it took, from where, and whether a request has been sent for it since."""

    at: float
    load_s: float
    tier: Tier = "disk"
    used: bool = False


@dataclass(slots=True)
class Runner:
    """
    One runner that is up. Its slots are the host's truth; ``in_use`` is what we dispatched or were told of.

    ``blocked``: the host bounced a request although a slot looked free to us, so nothing is sent until it tells
    of its slots again.
    """

    runner: RunnerId
    epoch: Epoch
    slots: int
    hints: frozenset[Hint] | None
    caps: Caps = NO_CAPS
    in_use: dict[RequestId, Running] = field(default_factory=dict)
    loading: dict[Hint, float] = field(default_factory=dict)
    """Loads that we asked for and that are not over, and since when."""
    loading_from: dict[Hint, Source] = field(default_factory=dict)
    """Where those come from; without an entry, from disk."""
    in_ram: frozenset[Hint] = frozenset()
    """Models whose bytes are in host memory, as its host tells, whether or not they are on the card as well."""
    leaving: frozenset[Hint] = frozenset()
    """What those loads evict: it may still be told as resident for a moment, and must not count as that."""
    loaded: dict[Hint, Loaded] = field(default_factory=dict)
    """The last load job of each resident model, for the receipts of those who waited for it."""
    used: dict[Hint, int] = field(default_factory=dict)
    """Order number of the last dispatch for each hint: what a runner that evicts by itself gives up first."""
    pinned: frozenset[Hint] = frozenset()
    """Models that leave it for nothing, until somebody unpins them."""
    accepting: bool = True
    blocked: bool = False
    dispatched_order: int = -1
    """Order number of the last dispatch to it, -1 for none: the least is the one whose turn it is."""
    card: str = field(init=False)
    """What its executions teach about: this runner of a card of that model, as both outlive a restart."""

    def __post_init__(self) -> None:
        self.card = f"{self.caps.gpu}#{self.runner}"

    @property
    def free_slots(self) -> int:
        """Return how many requests it would take now."""
        free = self.slots - len(self.in_use)  # asked of every runner at every event, and most are busy
        if free <= 0 or not self.accepting or self.blocked or (self.loading and not self.caps.overlaps):
            return 0
        return free

    @property
    def takes_jobs(self) -> bool:
        """Return whether it takes loads as jobs of their own, and says what it holds, so that we know what for."""
        return self.caps.loads and self.hints is not None

    @property
    def may_begin_load(self) -> bool:
        """Return whether a load could begin there now: as a job of its own, or as part of a cold execution."""
        return self._may_begin_job if self.takes_jobs else self.free_slots > 0

    @property
    def can_load(self) -> bool:
        """Return whether it would begin a load job now: one at a time, and beside executions only if it can."""
        return self.takes_jobs and self._may_begin_job

    @property
    def _may_begin_job(self) -> bool:
        if self.loading or self.blocked or not self.accepting:
            return False
        return self.caps.overlaps or not self.in_use

    def base(self, hint: Hint) -> Hint | None:
        """Return the model that it holds and on which *hint* is laid; None: it holds none, or its hints say nothing."""
        if not self.caps.joint:
            return None
        return next((base for base in bases(hint, self.caps.joint) if base in (self.hints or ())), None)

    def kin(self, hint: Hint) -> Hint | None:
        """Return another model that it holds and that has one base with *hint*, or is it; None: it holds none."""
        return next(self._akin(hint, self.hints or ()), None) if self.caps.joint else None

    def source(self, hint: Hint) -> Source:
        """Return where it would load *hint* from, also if it holds it now: then, once it is evicted."""
        if not self.caps.joint:  # asked some hundred times for a decision
            return "ram" if hint in self.in_ram else "disk"
        if self.kin(hint) is not None:
            return "base"
        return self.source_alone(hint)

    def source_alone(self, hint: Hint) -> Source:
        """Return the same if nothing that is laid upon *hint*, or beside it upon its base, may be counted on."""
        if not self.caps.joint:
            return "ram" if hint in self.in_ram else "disk"
        if self.base(hint) is not None:
            return "base"
        known = hint in self.in_ram or any(self._akin(hint, self.in_ram))
        return "ram" if known else "disk"

    def _akin(self, hint: Hint, others: Collection[Hint]) -> Iterator[Hint]:
        joint = self.caps.joint
        stems = {hint, *bases(hint, joint)}
        return (o for o in others if o != hint and not stems.isdisjoint((o, *bases(o, joint))))

    def loads_from(self, hint: Hint) -> Source:
        """Return where the load of *hint* comes from that is under way."""
        return self.loading_from.get(hint, "disk")

    def counted(self, told: frozenset[Hint] | None) -> frozenset[Hint] | None:
        """
        Return what of the hints *told* counts as resident: not what is leaving, nor what is still being loaded.

        Its host may list a model a moment before it says that the load has ended, and who is sent there in between
        would not be known to have waited for that load.
        """
        return None if told is None else told - self.leaving - self.loading.keys()

    def use(self, hint: Hint, order: int) -> None:
        """Note that dispatch number *order* is for *hint*."""
        self.used.pop(hint, None)
        self.used[hint] = order
        if len(self.used) > USED_MAX:
            del self.used[next(iter(self.used))]

    def lacks(self, running: Running) -> bool:
        """
        Return whether it does not list the model that it has just run: its hints are of another kind.

        One that was warm may have dropped it by itself in the meantime, but not if loads are ordered: then it only
        counted as warm because a load had ended well.
        """
        if self.hints is None or running.hint in self.hints or running.hint in self.leaving:
            return False
        return not running.warm or (self.takes_jobs and running.hint in self.loaded)

    def load_over(self, hint: Hint, told: frozenset[Hint] | None) -> bool:
        """Note that a load has ended and the runner then holds *told*, None: as far as we know; False: none was."""
        if self.loading.pop(hint, None) is None:
            return False
        self.loading_from.pop(hint, None)
        self.leaving = frozenset()
        if told is not None:
            self.hints = self.counted(told)
        return True

    def fits(self, hint: Hint, size_bytes: int | None) -> bool:
        """Return whether it can run a model of that size at all: as far as it has told, or because it is there."""
        limit = self.caps.vram_bytes if self.caps.run_bytes is None else self.caps.run_bytes
        return size_bytes is None or limit is None or size_bytes <= limit or hint in (self.hints or ())

    def executes(self, hint: Hint) -> bool:
        """Return whether a request for *hint* is in one of its slots."""
        return any(running.hint == hint for running in self.in_use.values())


@dataclass(slots=True)
class Fleet:
    """The runners that are up, and those that will be again."""

    runners: dict[RunnerId, Runner] = field(default_factory=dict)
    returning: set[RunnerId] = field(default_factory=set)
    unloadable: OrderedDict[Hint, None] = field(default_factory=OrderedDict)
    """Models whose last load failed, until a runner holds one: their requests are executed, so that the client hears why."""
    unlisted: OrderedDict[Hint, None] = field(default_factory=OrderedDict)
    """Models that a runner has served and then did not list, until one does: nobody is ever warm for them."""
    joint: str | None = None
    """By what their app joins names (`Caps.joint`), as the last of them to come has said; None: none has come yet."""
    _last_served: OrderedDict[Hint, RunnerId] = field(default_factory=OrderedDict)
    _served: dict[RunnerId, set[Hint]] = field(default_factory=dict)
    """The same by runner."""

    def fits(self, hint: Hint, size_bytes: int | None) -> bool:
        """Return whether some runner could run a model of that size, or may be able to when it is up again."""
        return bool(self.returning) or any(r.fits(hint, size_bytes) for r in self.runners.values())

    def free(self) -> list[Runner]:
        """Return the runners with a free slot, the one whose turn it is first (round robin)."""
        return sorted(
            (r for r in self.runners.values() if r.free_slots), key=lambda r: (r.dispatched_order, r.runner)
        )

    def warm(self, hint: Hint, runner: Runner) -> bool:
        """Return whether *runner* is warm for *hint*: it says so, or, if it gives no hints, served it last."""
        if runner.hints is None:
            return self.served_last(hint, runner)
        return hint in runner.hints

    def served_last(self, hint: Hint, runner: Runner) -> bool:
        """Return whether no other runner has been sent a request for *hint* since *runner* was."""
        return self._last_served.get(hint) == runner.runner

    def held(self, runner: Runner) -> Collection[Hint]:
        """Return all that *runner* is `warm` for."""
        return self._served.get(runner.runner, ()) if runner.hints is None else runner.hints

    def warming(self, hint: Hint) -> Iterator[Runner]:
        """Iterate over the runners that are warm for *hint* or execute a request for it now."""
        return (
            r for r in self.runners.values() if self.warm(hint, r) or hint in r.loading or r.executes(hint)
        )

    def serve(self, hint: Hint, runner: RunnerId) -> RunnerId | None:
        """Remember that *runner* was the last to be sent a request for *hint*; return who is not warm for it any more."""
        before = self._drop(hint)
        self._last_served[hint] = runner
        self._served.setdefault(runner, set()).add(hint)
        if len(self._last_served) > LAST_SERVED_MAX:
            self._drop(next(iter(self._last_served)))
        return before if before is not None and self.runners[before].hints is None else None

    def give_up(self, hint: Hint) -> None:
        """Ask for no more load jobs for *hint*: the last has failed."""
        _remember(self.unloadable, hint)

    def missed(self, hint: Hint) -> None:
        """Note that a runner has served *hint* and does not list it: its hints are of another kind."""
        _remember(self.unlisted, hint)

    def found(self, hints: Iterable[Hint]) -> None:
        """Note that a runner holds *hints*, so that they can be loaded, and are listed, after all."""
        for hint in hints if self.unloadable or self.unlisted else ():
            self.unloadable.pop(hint, None)
            self.unlisted.pop(hint, None)

    def forget(self, runner: RunnerId) -> None:
        """Drop what *runner* served: its process is gone, and what it was warm for with it."""
        for hint in self._served.pop(runner, ()):
            del self._last_served[hint]

    def _drop(self, hint: Hint) -> RunnerId | None:
        if (runner := self._last_served.pop(hint, None)) is not None:
            self._served[runner].discard(hint)
        return runner


def _remember(table: OrderedDict[Hint, None], hint: Hint) -> None:
    table[hint] = None
    if len(table) > UNLOADABLE_MAX:
        table.popitem(last=False)
