"""A model larger than a card is never sent there; one that fits no card is refused, and its client told."""

from __future__ import annotations

from falctl.core.events import (
    Action,
    Arrived,
    Dispatch,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    Refuse,
    RunnerDown,
    RunnerUp,
    TellWish,
    Tick,
)
from falctl.core.policies import Auto
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, GiB, Hint, RequestId, RunnerId, Wanted

E1 = Epoch(1)
R0, R1 = RunnerId(0), RunnerId(1)


def up(runner: RunnerId, vram_gib: int | None, hints: str = "", *, loads: bool = True) -> RunnerUp:
    vram_bytes = None if vram_gib is None else vram_gib * GiB
    caps = Caps("card", loads=loads, overlaps=loads, vram_bytes=vram_bytes)
    return RunnerUp(runner, E1, 1, (), frozenset(map(Hint, hints.split())), caps)


def wants(name: str, hint: str, size_gib: int | None) -> Arrived:
    size = None if size_gib is None else size_gib * GiB
    return Arrived(RequestId(name), Wanted(Hint(hint), "header"), "", size_bytes=size)


def fed(*events: Event) -> tuple[Scheduler, list[Action]]:
    scheduler = Scheduler(Auto(), queue_max=99)
    actions: list[Action] = []
    for n, event in enumerate(events):
        actions += scheduler.handle(event, now=float(n))
        scheduler.check()
    return scheduler, actions


def told(actions: list[Action]) -> list[str]:
    lines = []
    for action in actions:
        match action:
            case Load(runner, _, hint, _):
                lines.append(f"{hint}>{runner}")
            case Dispatch(request, runner):
                lines.append(f"{request}@{runner}")
            case Refuse(request, code):
                lines.append(f"{request}!{code}")
            case TellWish():
                raise AssertionError(action)
    return lines


def test_a_model_is_loaded_only_where_it_fits() -> None:
    for order in ((up(R0, 8), up(R1, 24)), (up(R1, 24), up(R0, 8))):
        _, actions = fed(*order, wants("1", "large", 20))
        assert told(actions) == ["large>1"]


def test_it_waits_for_the_card_that_can_hold_it_however_idle_the_others_are() -> None:
    scheduler, actions = fed(up(R0, 8), up(R1, 24), wants("1", "other", 20), wants("2", "large", 20))
    assert told(actions) == ["other>1"]
    assert told(scheduler.handle(LoadEnded(R1, E1, Hint("other"), ok=True, load_s=5.0), now=9.0)) == ["1@1"]
    assert [w.request for w in scheduler.queue] == ["2"]


def test_a_runner_that_loads_by_itself_is_not_sent_what_its_card_cannot_hold() -> None:
    _, actions = fed(up(R0, 8, loads=False), up(R1, 24, loads=False), wants("1", "large", 20))
    assert told(actions) == ["1@1"]


def test_what_fits_no_card_is_refused_with_its_size() -> None:
    scheduler, actions = fed(up(R0, 8), up(R1, 16), wants("1", "huge", 20))
    assert actions == [Refuse(RequestId("1"), "model_too_large", None, size_bytes=20 * GiB)]
    assert not scheduler.queue


def test_a_card_that_is_coming_back_may_hold_it() -> None:
    scheduler, actions = fed(up(R0, 8), RunnerDown(R1, returns=True), wants("1", "large", 20))
    assert told(actions) == []
    assert told(scheduler.handle(up(R1, 24), now=9.0)) == ["large>1"]
    scheduler, _ = fed(
        up(R0, 8), RunnerDown(R1, returns=True), wants("1", "large", 20), wants("2", "new", None)
    )
    assert told(scheduler.handle(RunnerDown(R1, returns=False), now=9.0)) == ["1!model_too_large"]


def test_what_is_there_fits_whatever_was_declared() -> None:
    _, actions = fed(up(R0, 8, "m"), wants("1", "m", 20))
    assert told(actions) == ["1@0"]


def test_what_is_not_known_is_tried() -> None:
    for event in (up(R0, None), up(R0, 1)):
        size_gib = 20 if event.caps.vram_bytes is None else None
        scheduler, actions = fed(event, wants("1", "m", size_gib))
        assert told(actions) == ["m>0"], "the mean of all models is larger than the small card"
        scheduler.handle(HintsChanged(R0, E1, frozenset()), now=9.0)
        assert scheduler.handle(Tick(), now=10.0) == []


def test_without_any_runner_that_is_not_the_reason() -> None:
    _, actions = fed(wants("1", "m", 20))
    assert told(actions) == ["1!no_runner"]
