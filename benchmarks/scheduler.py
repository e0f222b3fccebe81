"""
What one decision costs: microseconds of `Scheduler.handle` per event, against the same fleet and queue under `fal`.

    python -m benchmarks.scheduler [--policies auto,fal] [--sizes 16x64x512] [--events 4000] [--json FILE]

A steady state: as many requests wait as the size says, because a new one comes for each that leaves the queue; hints
are Zipf(1), 40 clients take turns, loads take about 8 s and executions about 3 s, both exponential. Runners hold
three models and take load jobs (which may overlap executions, or may not); under a policy that knows no load jobs
they load in the slot and give up what they used longest ago. Every event is timed alone, garbage collection
included, once the queue has been turned over; what counts is the CPU time of the thread, which a busy machine
lengthens by its caches alone.
"""

from __future__ import annotations

import heapq
import math
import sys
import time
from argparse import ArgumentTypeError
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from benchmarks._report import Table, arguments, publish
from falctl.core.events import (
    Action,
    Arrived,
    Dispatch,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    Refuse,
    Released,
    RunnerUp,
    TellWish,
)
from falctl.core.policies.base import Policy
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted
from falctl.errors import ConfigError
from falctl.policy_load import find_policy

SIZES: Final = ((4, 16, 32), (16, 64, 512), (64, 256, 512))
"""Runners, hints and waiting requests of each."""
GOALS: Final = {
    (16, 64, 512): "Goal of auto: p50 under 100 us, p99 under 1,000 us.",
    (64, 256, 512): "Goal of auto: p99 under 5,000 us.",
}
METRICS: Final = ("p50 us", "p90 us", "p99 us", "max us#", "mean us", "events#")
BASELINE: Final = "fal"

CLIENTS: Final = 40
MODELS_MAX: Final = 3
EXEC_S: Final = 3.0
LOAD_S: Final = 8.0
ARRIVAL_S: Final = 0.01
"""Time between two arrivals while the queue fills."""

FIRST: Final = Epoch(1)


@dataclass(frozen=True, slots=True)
class Size:
    """How large the fleet and its queue are, and what its runners can do."""

    runners: int
    hints: int
    waiting: int
    overlaps: bool

    @property
    def label(self) -> str:
        """Return what distinguishes two of one fleet."""
        return "" if self.overlaps else ", no overlap"


@dataclass(slots=True)
class Fleet:
    """Plays runners and clients to one scheduler, and takes the time of every `handle`."""

    scheduler: Scheduler
    size: Size
    rng: Random = field(default_factory=lambda: Random(1))
    now: float = 0.0
    spent_us: dict[str, list[float]] = field(default_factory=dict)
    _resident: list[OrderedDict[Hint, None]] = field(default_factory=list)
    _wants: dict[RequestId, Hint] = field(default_factory=dict)
    _events: list[tuple[float, int, Event]] = field(default_factory=list)
    _n: int = 0
    _order: Iterator[int] = field(default_factory=count)

    def start(self) -> None:
        """Bring all runners up, with nothing loaded."""
        caps = Caps("simulated", loads=True, overlaps=self.size.overlaps, models_max=MODELS_MAX)
        for runner in range(self.size.runners):
            self._resident.append(OrderedDict())
            self._feed(RunnerUp(RunnerId(runner), FIRST, 1, (), frozenset(), caps))

    def play(self, events: int) -> None:
        """Let at least *events* happen; a request arrives whenever fewer wait than should."""
        hints = [Hint(f"model-{i}") for i in range(self.size.hints)]
        weights = [1 / (i + 1) for i in range(self.size.hints)]
        until = self._n + events
        while self._n < until:
            while len(self.scheduler.queue) < self.size.waiting:
                hint = self.rng.choices(hints, weights)[0]
                request = RequestId(str(self._n))
                self._wants[request] = hint
                self._feed(Arrived(request, Wanted(hint, "header"), f"client-{self._n % CLIENTS}"))
                self.now += ARRIVAL_S
            at, _, event = heapq.heappop(self._events)
            self.now = max(self.now, at)
            self._feed(event)

    def _feed(self, event: Event) -> None:
        began = time.thread_time_ns()
        actions = self.scheduler.handle(event, now=self.now)
        spent_us = (time.thread_time_ns() - began) / 1000
        self._n += 1
        self.spent_us.setdefault(type(event).__name__, []).append(spent_us)
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Dispatch(request, runner):
                self._execute(request, runner)
            case Load(runner, _, hint, evict):
                for victim in evict:
                    del self._resident[runner][victim]
                self._resident[runner][hint] = None
                load_s = self.rng.expovariate(1 / LOAD_S)
                self._later(load_s, LoadEnded(runner, FIRST, hint, ok=True, load_s=load_s))
            case Refuse() | TellWish():
                msg = f"nothing is to be refused here: {action}"
                raise AssertionError(msg)

    def _execute(self, request: RequestId, runner: RunnerId) -> None:
        resident, hint = self._resident[runner], self._wants.pop(request)
        exec_s = self.rng.expovariate(1 / EXEC_S)
        load_s = 0.0
        if hint not in resident:
            load_s = self.rng.expovariate(1 / LOAD_S)
            if len(resident) >= MODELS_MAX:
                resident.popitem(last=False)
        resident[hint] = None
        resident.move_to_end(hint)
        if load_s:
            self._later(exec_s + load_s, HintsChanged(runner, FIRST, frozenset(resident)))
        self._later(exec_s + load_s, Released(request, runner, FIRST, exec_s, load_s))

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))


def main() -> int:
    """Measure and publish; a few minutes."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--policies", default=f"auto,{BASELINE}", metavar="P[,P...]")
    parser.add_argument(
        "--sizes", type=_sizes, default=SIZES, metavar="RxHxW[,...]", help="of fleet and queue"
    )
    parser.add_argument("--events", type=int, default=4000, help="measured in each state")
    options = parser.parse_args()
    names = [name for name in options.policies.split(",") if name != BASELINE]
    try:
        tables = [_measured(names, *size, events=options.events) for size in options.sizes]
    except ConfigError as error:
        sys.stderr.write(f"benchmarks.scheduler: {error}\n")
        return error.exit_code
    publish("Decisions", tables, json_path=options.json)
    return 0


def _sizes(text: str) -> list[tuple[int, ...]]:
    found = [part.split("x") for part in text.split(",")]
    if not all(len(part) == 3 and all(n.isdecimal() and int(n) for n in part) for part in found):
        msg = f"{text!r} is not runners x hints x waiting, like 16x64x512,64x256x512"
        raise ArgumentTypeError(msg)
    return [tuple(map(int, part)) for part in found]


def _measured(names: Sequence[str], runners: int, hints: int, waiting: int, *, events: int) -> Table:
    rows: dict[str, dict[str, float]] = {}
    for name in (*names, BASELINE):
        for overlaps in (True, False) if name != BASELINE else (True,):
            size = Size(runners, hints, waiting, overlaps)
            sys.stderr.write(f"{runners} x {hints} x {waiting}, {name}{size.label}\n")
            rows |= _rows(name + size.label, spent(find_policy(name, cwd=Path.cwd()), size, events=events))
    title = f"{runners} runners x {hints} hints x {waiting} waiting"
    goal = GOALS.get((runners, hints, waiting))
    return Table(title, METRICS, rows, baseline=BASELINE, notes=(goal,) if goal else ())


def spent(policy: Policy, size: Size, *, events: int) -> dict[str, list[float]]:
    """Return the microseconds of each of at least *events* events, by kind, in a steady state."""
    fleet = Fleet(Scheduler(policy, queue_max=size.waiting + 1), size)
    fleet.start()
    fleet.play(3 * size.waiting + 10 * size.runners)  # each request comes, leaves, and some loads end
    fleet.spent_us = {}
    fleet.play(events)
    return fleet.spent_us


def _rows(label: str, by_kind: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    rows = {label: _figures([us for found in by_kind.values() for us in found])}
    rows |= {f"{label}: {kind}": _figures(found) for kind, found in sorted(by_kind.items())}
    return rows


def _figures(found: list[float]) -> dict[str, float]:
    ordered = sorted(found)
    n = len(ordered)
    p50, p90, p99 = (ordered[min(n - 1, math.floor(q * n))] for q in (0.5, 0.9, 0.99))
    values = (p50, p90, p99, ordered[-1], sum(ordered) / n, float(n))
    return dict(zip(METRICS, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
