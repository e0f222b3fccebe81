"""The durable queue shows the scheduler few of many: what it gains by hearing how many more wait for each model."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from random import Random
from string import ascii_lowercase

import pytest

from falctl.core.backlog import WINDOW_MAX, Backlog, Change, Entry
from falctl.core.events import (
    Arrived,
    Behind,
    Cancelled,
    Dispatch,
    Event,
    Load,
    LoadEnded,
    Refuse,
    Released,
    RunnerUp,
    TellWish,
)
from falctl.core.policies import make_policy
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted

E1 = Epoch(1)
EXEC_S, LOAD_S = 0.2, 30.0


@dataclass
class Line:
    """Plays one backlog out on four runners of two models each, in virtual time."""

    told: bool
    window_max: int
    now: float = 0.0
    waited_s: dict[RequestId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.window_max)
        self.scheduler = Scheduler(make_policy("auto", hold_s=10.0, bypass_max_s=30.0), queue_max=1)
        self.resident: dict[RunnerId, set[Hint]] = {}
        self.hints: dict[RequestId, Hint] = {}
        self.order = itertools.count()
        self.events: list[tuple[float, int, Event]] = []
        caps = Caps("simulated", loads=True, overlaps=True, models_max=2)
        for runner in map(RunnerId, range(4)):
            self.resident[runner] = set()
            self.feed(RunnerUp(runner, E1, 1, (), frozenset(), caps))

    def submit(self, *models: str) -> None:
        for model in models:
            request, hint = RequestId(f"q{next(self.order)}"), Hint(model)
            self.hints[request] = hint
            self.change(self.backlog.add(Entry(request, next(self.order), hint)))

    def play(self) -> None:
        while self.events:
            self.now, _, event = heapq.heappop(self.events)
            if isinstance(event, LoadEnded):
                self.resident[event.runner].add(event.hint)
            self.feed(event)
        assert len(self.waited_s) == len(self.hints)

    def change(self, change: Change) -> None:
        for entry in change.hide:
            self.feed(Cancelled(entry.request))
        for entry in change.show:
            self.feed(Arrived(entry.request, Wanted(self.hints[entry.request], "body"), "", bounded=False))
        for hint, count in change.behind if self.told else ():
            self.feed(Behind(hint, count))

    def feed(self, event: Event) -> None:
        for action in self.scheduler.handle(event, now=self.now):
            match action:
                case Dispatch(request, runner):
                    self.waited_s[request] = self.now
                    ended = Released(request, runner, E1, EXEC_S, 0.0)
                    heapq.heappush(self.events, (self.now + EXEC_S, next(self.order), ended))
                    self.change(self.backlog.remove(request))
                case Load(runner, _, hint, evict):
                    self.resident[runner] -= set(evict)
                    over = LoadEnded(runner, E1, hint, ok=True, load_s=LOAD_S)
                    heapq.heappush(self.events, (self.now + LOAD_S, next(self.order), over))
                case Refuse() | TellWish():
                    raise AssertionError(action)


def played(models: list[str], *, told: bool, window_max: int = WINDOW_MAX) -> tuple[float, float]:
    """Return when everything had ended, and the mean wait."""
    line = Line(told, window_max)
    line.submit(*models)
    line.play()
    return line.now, sum(line.waited_s.values()) / len(line.waited_s)


@pytest.mark.parametrize(
    ("models", "ended", "waited"),
    [
        pytest.param(["a"] * 520 + ["x"] * 3000, 0.90, 0.95, id="thousands of one model behind another"),
        pytest.param([*"abcd"] * 130 + ["x"] * 2500 + ["y"] * 100, 0.92, 0.98, id="one of six stands behind"),
        pytest.param(["a"] * 600 + ["b"] * 600 + ["c"] * 600, 1.02, 1.02, id="blocks"),
        pytest.param(
            Random(3).choices("abcdefgh", [1 / (i + 1) for i in range(8)], k=3500), 1.02, 1.03, id="Zipf"
        ),
        pytest.param(Random(3).choices(ascii_lowercase, k=3000), 1.01, 1.01, id="all alike"),
    ],
)
def test_knowing_what_stands_behind_helps_or_harms_nobody(
    models: list[str], ended: float, waited: float
) -> None:
    untold, told = (played(models, told=told) for told in (False, True))
    assert told[0] <= ended * untold[0]
    assert told[1] <= waited * untold[1]


def test_with_a_narrow_window_it_is_what_decides() -> None:
    models = [*"abcd"] * 130 + ["x"] * 1500 + ["y"] * 100
    untold, told = (played(models, told=told, window_max=64) for told in (False, True))
    assert told[0] <= 0.9 * untold[0]
