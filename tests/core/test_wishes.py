"""Models that are wished for by name: where they are loaded, when, beside which pins, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from falctl.core import wishes
from falctl.core.events import (
    Action,
    Arrived,
    Dispatch,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    PinsChanged,
    Refuse,
    Released,
    RunnerDown,
    RunnerDrains,
    RunnerUp,
    TellWish,
    Tick,
    WishDropped,
    Wished,
)
from falctl.core.policies import Auto, Move, Policy, State
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.look import Look, look_at
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, GiB, Hint, RequestId, RunnerId, Wanted

E1, E2 = Epoch(1), Epoch(2)
JOBS = Caps("card", loads=True, models_max=2)
BESIDE = replace(JOBS, overlaps=True)
BYTES = Caps("card", loads=True, vram_bytes=24 * GiB)


@dataclass
class Scene:
    """Feeds events; loads come back as ``a>0-b``, dispatches as ``q@0``, refusals as ``q!code``, news as ``1:begun@0``."""

    policy: Policy = field(default_factory=Auto)
    now: float = 0.0
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.policy, 100)

    def feed(self, event: Event) -> list[str]:
        self.now += 1.0
        actions = self.scheduler.handle(event, now=self.now)
        self.scheduler.check()
        return [told(action) for action in actions]

    def up(
        self, runner: int, hints: str | None = "", *, caps: Caps = JOBS, slots: int = 1, epoch: Epoch = E1
    ) -> list[str]:
        held = None if hints is None else names(hints)
        return self.feed(RunnerUp(RunnerId(runner), epoch, slots, (), held, caps))

    def wish(self, hint: str, runner: int | None = None, *, number: int = 1, first: bool = True) -> list[str]:
        on = None if runner is None else RunnerId(runner)
        return self.feed(Wished(number, Hint(hint), on, first))

    def come(self, request: str, hint: str) -> list[str]:
        return self.feed(Arrived(RequestId(request), Wanted(Hint(hint), "header"), ""))

    def done(self, request: str, runner: int = 0) -> list[str]:
        return self.feed(Released(RequestId(request), RunnerId(runner), E1, 1.0, 0.0))

    def loaded(self, hint: str, runner: int = 0, *, ok: bool = True, error: str = "") -> list[str]:
        return self.feed(LoadEnded(RunnerId(runner), E1, Hint(hint), ok, 4.0, error=error))

    def pin(self, hints: str, runner: int = 0) -> list[str]:
        return self.feed(PinsChanged(RunnerId(runner), E1, names(hints)))


def names(hints: str) -> frozenset[Hint]:
    return frozenset(map(Hint, hints.split()))


def told(action: Action) -> str:
    match action:
        case Dispatch(request, runner):
            return f"{request}@{runner}"
        case Refuse(request, code):
            return f"{request}!{code}"
        case Load(runner, _, hint, evict):
            return f"{hint}>{runner}" + "".join(f"-{victim}" for victim in evict)
        case TellWish(number, news, runner):
            return f"{number}:{news}" + ("" if runner is None else f"@{runner}")


# --- where ---------------------------------------------------------------------------------------


def test_a_model_is_loaded_where_fewest_are_and_the_end_is_told() -> None:
    scene = Scene()
    scene.up(0, "a")
    scene.up(1)
    assert scene.wish("b") == ["b>1", "1:begun@1"]
    ended = LoadEnded(RunnerId(1), E1, Hint("b"), ok=True, load_s=4.0, tier="ram")
    assert scene.scheduler.handle(ended, now=9.0) == [
        TellWish(1, "loaded", RunnerId(1), load_s=4.0, tier="ram")
    ]
    assert scene.wish("b", number=2) == ["2:there@1"]


def test_on_the_runner_that_is_named_room_is_made_for_it() -> None:
    scene = Scene()
    scene.up(0, "a b")
    scene.up(1)
    assert scene.wish("c", 0) == ["c>0-a", "1:begun@0"]


def test_the_victim_is_told_with_the_news() -> None:
    scene = Scene()
    scene.up(0, "a b")
    actions = scene.scheduler.handle(Wished(1, Hint("c")), now=1.0)
    assert actions[1] == TellWish(1, "begun", RunnerId(0), evict=(Hint("a"),))


def test_why_a_load_failed_is_told() -> None:
    scene = Scene()
    scene.up(0)
    scene.wish("a")
    ended = LoadEnded(RunnerId(0), E1, Hint("a"), ok=False, load_s=0.0, error="no such model")
    assert scene.scheduler.handle(ended, now=9.0) == [
        TellWish(1, "failed", RunnerId(0), tier="disk", error="no such model")
    ]
    assert scene.wish("a", number=2) == ["a>0", "2:begun@0"], "who asks by name may try again"


def test_where_it_is_already_on_another_runner_a_copy_is_loaded_if_a_runner_is_named() -> None:
    scene = Scene()
    scene.up(0, "a")
    scene.up(1)
    assert scene.wish("a") == ["1:there@0"]
    assert scene.wish("a", 1, number=2) == ["a>1", "2:begun@1"]


# --- when ----------------------------------------------------------------------------------------


def test_it_waits_for_a_runner_to_be_free_and_then_goes_before_requests() -> None:
    scene = Scene()
    scene.up(0, "a")
    assert scene.come("q", "a") == ["q@0"]
    assert scene.come("r", "a") == []
    assert scene.wish("b") == []
    assert scene.done("q") == ["b>0", "1:begun@0"]
    assert scene.loaded("b") == ["1:loaded@0", "r@0"]


def test_beside_an_execution_it_is_loaded_at_once_where_the_app_allows_it() -> None:
    scene = Scene()
    scene.up(0, "a", caps=BESIDE)
    assert scene.come("q", "a") == ["q@0"]
    assert scene.wish("b") == ["b>0", "1:begun@0"]


def test_the_only_copy_of_what_somebody_waits_for_is_not_its_victim() -> None:
    scene = Scene()
    scene.up(0, "a b", caps=BESIDE)
    scene.come("q", "a")
    scene.come("r", "b")
    assert scene.wish("c") == []
    assert scene.done("q") == ["c>0-a", "1:begun@0", "r@0"], "nobody waits for a any more"


def test_it_joins_a_load_that_is_under_way() -> None:
    scene = Scene()
    scene.up(0)
    assert scene.come("q", "a") == ["a>0"]
    assert scene.wish("a") == ["1:joined@0"]
    assert scene.wish("a", 0, number=2) == ["2:joined@0"]
    assert scene.loaded("a") == ["1:loaded@0", "2:loaded@0", "q@0"]


def test_two_wishes_for_one_model_are_one_load() -> None:
    scene = Scene()
    scene.up(0)
    scene.come("q", "b")
    assert scene.wish("a") == []
    assert scene.wish("a", 0, number=2) == []
    assert scene.wish("a", 1, number=3) == ["3:no_runner"]
    assert scene.loaded("b") == ["a>0", "1:begun@0", "2:begun@0"]


def test_a_load_elsewhere_is_not_what_a_wish_for_one_runner_waits_for() -> None:
    scene = Scene()
    scene.up(0)
    scene.up(1, "x")
    assert scene.come("q", "x") == ["q@1"]
    assert scene.wish("a", 1) == []
    assert scene.wish("a", number=2) == ["a>0", "2:begun@0"]
    assert scene.done("q", 1) == ["a>1", "1:begun@1"]


def test_wishes_for_two_models_are_granted_one_after_the_other() -> None:
    scene = Scene()
    scene.up(0)
    scene.come("q", "x")
    scene.wish("a")
    scene.wish("b", number=2)
    assert scene.loaded("x") == ["a>0", "1:begun@0"]
    assert scene.loaded("a") == ["1:loaded@0", "b>0-a", "2:begun@0"]


def test_a_wish_that_is_dropped_is_not_told_of_and_not_granted() -> None:
    scene = Scene()
    scene.up(0)
    scene.come("q", "b")
    scene.wish("a")
    assert scene.feed(WishDropped(1)) == []
    assert scene.loaded("b") == ["q@0"]
    scene.done("q")
    scene.wish("a", number=2)
    scene.feed(WishDropped(2))
    assert scene.loaded("a") == []


# --- the configuration's -------------------------------------------------------------------------


def test_one_of_the_configuration_takes_what_requests_leave() -> None:
    scene = Scene()
    scene.up(0, "a")
    scene.come("q", "a")
    scene.come("r", "a")
    assert scene.wish("b", first=False) == []
    assert scene.done("q") == ["r@0"]
    assert scene.done("r") == ["b>0", "1:begun@0"]


def test_those_of_the_configuration_are_spread_and_evict_nothing() -> None:
    scene = Scene()
    scene.up(0, caps=replace(JOBS, models_max=1))
    scene.up(1, "x", caps=JOBS)
    assert scene.wish("a", number=1, first=False) == ["a>0", "1:begun@0"]
    assert scene.wish("b", number=2, first=False) == ["b>1", "2:begun@1"]
    assert scene.wish("c", number=3, first=False) == []
    assert scene.loaded("b", 1) == ["2:loaded@1", "3:full"]


def test_one_of_the_configuration_waits_where_there_is_room_on_a_busy_runner() -> None:
    scene = Scene()
    scene.up(0, "a", caps=JOBS)
    scene.up(1, "x y", caps=JOBS)
    scene.come("q", "a")
    assert scene.wish("b", first=False) == []
    assert scene.done("q") == ["b>0", "1:begun@0"]


# --- runners that come and go --------------------------------------------------------------------


def test_without_a_runner_it_waits_for_one_that_is_coming_only() -> None:
    scene = Scene()
    assert scene.wish("a") == ["1:no_runner"]
    scene.feed(RunnerDown(RunnerId(0), returns=True))
    assert scene.wish("a", number=2) == []
    assert scene.wish("a", 0, number=3) == []
    assert scene.wish("a", 1, number=4) == ["4:no_runner"]
    assert scene.up(0) == ["a>0", "2:begun@0", "3:begun@0"]


def test_a_runner_that_takes_no_work_now_is_waited_for() -> None:
    scene = Scene()
    scene.up(0)
    scene.feed(RunnerDrains(RunnerId(0), E1))
    assert scene.wish("a") == []
    assert scene.up(0) == ["a>0", "1:begun@0"]


def test_an_app_that_takes_no_load_jobs_cannot_grant_any() -> None:
    scene = Scene()
    scene.up(0, caps=Caps("card"))
    scene.up(1, None)
    assert scene.wish("a") == ["1:takes_no_loads"]
    assert scene.wish("a", 1, number=2) == ["2:takes_no_loads"]


@pytest.mark.parametrize("returns", [True, False])
def test_a_load_whose_runner_dies_is_lost_and_not_made_again(*, returns: bool) -> None:
    scene = Scene()
    scene.up(0)
    scene.wish("a")
    assert scene.feed(RunnerDown(RunnerId(0), returns=returns)) == ["1:lost@0"]
    assert scene.up(0, epoch=E2) == []


def test_a_load_whose_runner_came_back_unnoticed_is_lost() -> None:
    scene = Scene()
    scene.up(0)
    scene.wish("a")
    assert scene.up(0, epoch=E2) == ["1:lost@0"]


@pytest.mark.parametrize(
    ("loading", "hints", "news"), [("a", "", []), ("", "a", ["1:there@0"]), ("", "", ["1:failed@0"])]
)
def test_of_a_load_whose_end_was_not_heard_the_runner_tells(
    loading: str, hints: str, news: list[str]
) -> None:
    scene = Scene()
    scene.up(0)
    scene.wish("a")
    under_way = tuple(map(Hint, loading.split()))
    assert scene.feed(RunnerUp(RunnerId(0), E1, 1, (), names(hints), JOBS, under_way)) == news


def test_the_fleet_is_looked_at_once_however_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def counted(state: State, knobs: Knobs, *, now: float) -> Look:
        looks.append(now)
        return look_at(state, knobs, now=now)

    monkeypatch.setattr(wishes, "look_at", counted)
    scene = Scene()
    scene.up(0, "a", caps=replace(BESIDE, models_max=1))
    assert scene.come("q", "a") == ["q@0"]
    for number in range(5):
        assert scene.wish(f"m{number}", number=number) == [], "its only victim executes"
    looks.clear()
    scene.feed(Tick())
    assert len(looks) == 1


# --- pins ----------------------------------------------------------------------------------------


def test_a_pinned_model_is_no_victim_whatever_waits() -> None:
    scene = Scene()
    scene.up(0, "a b")
    scene.pin("a")
    assert scene.come("q", "c") == ["c>0-b"]
    scene.loaded("c")
    scene.done("q")
    assert scene.wish("d") == ["d>0-c", "1:begun@0"]


def test_a_runner_that_comes_tells_its_pins_before_anything_is_decided() -> None:
    scene = Scene()
    scene.feed(RunnerDown(RunnerId(0), returns=True))
    scene.come("q", "c")
    up = RunnerUp(RunnerId(0), E1, 1, (), names("a b"), JOBS, pinned=names("a"))
    assert scene.feed(up) == ["c>0-b"]


def test_where_pins_leave_no_room_a_request_is_refused_with_their_names() -> None:
    scene = Scene()
    scene.up(0, "a b")
    scene.up(1, "c d")
    scene.pin("a b")
    assert scene.come("q", "e") == ["e>1-c"]
    scene.feed(HintsChanged(RunnerId(1), E1, names("d")))
    scene.loaded("e", 1)
    scene.pin("d e", 1)
    event = Arrived(RequestId("r"), Wanted(Hint("f"), "header"), "")
    assert scene.scheduler.handle(event, now=20.0) == [
        Refuse(RequestId("r"), "pins_leave_no_room", pinned=tuple(map(Hint, "abde")))
    ]
    assert scene.come("s", "a") == ["s@0"], "what is pinned is served"


def test_what_waits_is_refused_when_a_pin_takes_its_last_room() -> None:
    scene = Scene()
    scene.up(0, "a b")
    assert scene.come("p", "a") == ["p@0"]
    assert scene.come("q", "c") == []
    assert scene.pin("a") == []
    assert scene.pin("a b") == ["q!pins_leave_no_room"]


def test_a_runner_that_is_coming_may_have_room() -> None:
    scene = Scene()
    scene.up(0, "a b")
    scene.feed(RunnerDown(RunnerId(1), returns=True))
    scene.pin("a b")
    assert scene.come("q", "c") == []
    assert scene.wish("d") == []
    assert scene.feed(RunnerDown(RunnerId(1), returns=False)) == [
        "q!pins_leave_no_room",
        "1:pins_leave_no_room",
    ]


def test_what_is_executed_or_loaded_beside_its_pins_is_not_refused() -> None:
    scene = Scene()
    scene.up(0, "a b", caps=BESIDE)
    assert scene.wish("c") == ["c>0-a", "1:begun@0"]
    scene.pin("a b")
    assert scene.come("q", "c") == [], "it is on its way"
    assert scene.loaded("c") == ["1:loaded@0", "q@0"]
    scene.feed(HintsChanged(RunnerId(0), E1, names("a b")))
    assert scene.come("r", "c") == [], "it runs there"


def test_bytes_are_counted_where_they_are_known() -> None:
    scene = Scene()
    costs = scene.scheduler.state.costs
    costs.declare(Hint("big"), 20 * GiB)
    costs.declare(Hint("small"), 4 * GiB)
    costs.declare(Hint("medium"), 5 * GiB)
    scene.up(0, "big", caps=BYTES)
    scene.pin("big")
    assert scene.come("q", "medium") == ["q!pins_leave_no_room"]
    assert scene.come("r", "small") == ["small>0"]


def test_a_model_of_unknown_size_is_tried_beside_pins_as_long_as_anything_is_free() -> None:
    scene = Scene()
    scene.scheduler.state.costs.declare(Hint("big"), 20 * GiB)
    scene.up(0, "big", caps=BYTES)
    scene.pin("big")
    assert scene.come("q", "unknown") == ["unknown>0"]
    scene = Scene()
    scene.scheduler.state.costs.declare(Hint("big"), 24 * GiB)
    scene.up(0, "big", caps=BYTES)
    scene.pin("big")
    assert scene.come("q", "unknown") == ["q!pins_leave_no_room"]


@pytest.mark.parametrize("caps", [BYTES, replace(JOBS, models_max=1)])
def test_a_model_that_is_pinned_before_it_is_there_is_not_in_its_own_way(caps: Caps) -> None:
    for by_name in (True, False):
        scene = Scene()
        scene.scheduler.state.costs.declare(Hint("big"), 20 * GiB)
        scene.up(0, "", caps=caps)
        scene.pin("big")
        told = scene.wish("big") if by_name else scene.come("q", "big")
        assert told[0] == "big>0"


# --- what never fits -----------------------------------------------------------------------------


def test_what_is_larger_than_every_card_is_told_and_does_not_wait() -> None:
    scene = Scene()
    scene.scheduler.state.costs.declare(Hint("huge"), 30 * GiB)
    scene.up(0, "a", caps=BYTES)
    scene.feed(RunnerDown(RunnerId(1), returns=True))
    assert scene.wish("huge") == [], "the card of the one that is coming may be larger"
    assert scene.wish("huge", 0, number=2) == ["2:too_large"]
    assert scene.up(1, "", caps=BYTES) == ["1:too_large"]


def test_of_unequal_cards_the_one_that_is_named_may_be_too_small() -> None:
    scene = Scene()
    scene.scheduler.state.costs.declare(Hint("huge"), 30 * GiB)
    scene.up(0, "", caps=replace(BYTES, run_bytes=90 * GiB))
    scene.up(1, "", caps=replace(BYTES, vram_bytes=48 * GiB))
    assert scene.wish("huge", 0) == ["1:too_large"], "it runs whole elsewhere"
    assert scene.wish("huge", number=2) == ["huge>1", "2:begun@1"]


class Idle:
    """Moves nothing."""

    def choose(self, state: State, *, now: float) -> Move | None:
        del state, now
        return None


def test_a_wish_is_granted_under_every_policy() -> None:
    scene = Scene(Idle())
    scene.up(0, "a b")
    assert scene.wish("c") == ["c>0-a", "1:begun@0"]
