"""The requests that have ended, numbered, for whoever records a trace: what each truly cost, as its host told."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from falctl.core.costs import Costs
from falctl.core.events import Released
from falctl.core.fleet import Runner, Running
from falctl.core.learning import source_of
from falctl.core.queue import Waiting
from falctl.core.sources import Source
from falctl.core.types import Hint

ENDED_MAX: Final = 8192
"""At 1,600 requests a second, the most one router serves, five seconds: ten polls of a recorder."""
HINTS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Ended:
    """One request. Numbers are consecutive, from 1."""

    number: int
    arrived_at: float
    hint: Hint | None
    client: str
    exec_s: float | None
    """None: it failed or was cancelled, so that its cost is unknown."""
    load_s: float | None
    """What a load of its model from disk costs: its own, else the last one known; None: none has been seen."""
    size_bytes: int | None
    ram_load_s: float | None = None
    """The same from host memory."""


@dataclass(slots=True)
class EndedRing:
    """The last *size* of them. The scheduler writes."""

    size: int = ENDED_MAX
    count: int = 0
    """How many have ended; also the number of the last one."""
    _ring: deque[Ended] = field(default_factory=deque)
    _load_s: OrderedDict[tuple[Hint, Source], float] = field(default_factory=OrderedDict)

    def loaded(self, hint: Hint, load_s: float, source: Source = "disk", *, shared: bool = False) -> None:
        """A host has told of a load. *shared*: perhaps only of the rest of one that another request began."""
        known = self._load_s.get((hint, source), 0.0) if shared else 0.0
        self._load_s[hint, source] = max(load_s, known)
        self._load_s.move_to_end((hint, source))
        if len(self._load_s) > HINTS_MAX:
            self._load_s.popitem(last=False)

    def ended(
        self, event: Released, waiting: Waiting, runner: Runner, running: Running, costs: Costs
    ) -> None:
        """A request that came as *waiting* and ran as *running* has ended; *costs* do not know of it yet."""
        hint, exec_s, load_s = waiting.hint, event.exec_s, event.load_s
        if hint is None:
            load_s = 0.0
        elif load_s:
            if event.tier is not None:
                source = source_of(running.source, event.tier)
                self.loaded(hint, load_s, source, shared=runner.executes(hint))
            load_s = self._known(hint, "disk", costs)
        elif load_s is None and exec_s is not None and not running.warm and costs.knows(hint):
            # Its host cannot tell the load from the run, but runs without a load have been seen.
            alone_s = min(exec_s, costs.exec_s(hint, runner.caps.gpu))
            exec_s, load_s = alone_s, exec_s - alone_s
        else:
            load_s = self._known(hint, "disk", costs)
        self.count += 1
        size_bytes = None if hint is None else costs.size_bytes(hint)
        ram_load_s = None if hint is None else self._known(hint, "ram", costs)
        self._ring.append(
            Ended(
                self.count,
                waiting.arrived_at,
                hint,
                waiting.client,
                exec_s,
                load_s,
                size_bytes,
                ram_load_s,
            )
        )
        if len(self._ring) > self.size:
            self._ring.popleft()

    def _known(self, hint: Hint, source: Source, costs: Costs) -> float | None:
        return self._load_s.get((hint, source), costs.learnt_load_s(hint, source))

    def after(self, number: int, *, most: int) -> list[Ended]:
        """Return at most *most* that ended after the one of that number, oldest first; a gap means they are forgotten."""
        skip = max(number - (self.count - len(self._ring)), 0)
        return list(islice(self._ring, skip, skip + most))
