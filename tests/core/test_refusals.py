"""What runners say that they have no room for, how long it is believed, and whom that sends where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from falctl.core.events import (
    Action,
    Arrived,
    Dispatch,
    Event,
    Failure,
    HintsChanged,
    Load,
    LoadEnded,
    PinsChanged,
    Refuse,
    Released,
    RunnerDown,
    RunnerUp,
    TellWish,
    Tick,
    Wished,
)
from falctl.core.fleet import Runner
from falctl.core.policies import Affinity, Auto, Policy
from falctl.core.refusals import BELIEVED_MAX_S, BELIEVED_S, MODELS_MAX, Refusals
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, GiB, Hint, RequestId, RunnerId, Wanted
from falctl.core.why import why

A, B = Hint("A"), Hint("B")
E1 = Epoch(1)
SMALL = Caps("small", loads=True, vram_bytes=12 * GiB, run_bytes=64 * GiB)
LARGE = Caps("large", loads=True, vram_bytes=48 * GiB, run_bytes=64 * GiB)
COLD = Caps("small")
NO_ROOM = Failure(507, "model_too_large", "Model 'A' has no room: it needs 20.00 GiB")
UNKNOWN = Failure(404, "model_not_allowed", "Model 'A' is not allowed")
NEEDS = 20 * GiB


class Play:
    """Feeds events, and gives back what comes of them as words."""

    def __init__(self, *caps: Caps, policy: Policy | None = None, slots: int = 1) -> None:
        self.scheduler = Scheduler(policy or Auto(), queue_max=100)
        self.now = 0.0
        self.slots = slots
        for runner, each in enumerate(caps):
            self.up(runner, each)

    def feed(self, event: Event) -> list[str]:
        actions = self.scheduler.handle(event, now=self.now)
        self.scheduler.check()
        return [_told(action) for action in actions]

    def up(
        self, runner: int, caps: Caps, hints: str = "", *, epoch: int = 1, executing: str = ""
    ) -> list[str]:
        ids, held = tuple(map(RequestId, executing.split())), frozenset(map(Hint, hints.split()))
        return self.feed(RunnerUp(RunnerId(runner), Epoch(epoch), self.slots, ids, held, caps))

    def come(self, request: str, hint: Hint = A, *, job: bool = False) -> list[str]:
        return self.feed(Arrived(RequestId(request), Wanted(hint, "header"), "", bounded=not job))

    def fail(self, runner: int, failure: Failure | None = NO_ROOM, least_bytes: int = NEEDS) -> list[str]:
        error = "" if failure is None else failure.detail
        return self.feed(
            LoadEnded(
                RunnerId(runner),
                E1,
                A,
                ok=False,
                load_s=0.0,
                hints=self.view(runner).hints,
                error=error,
                failure=failure,
                least_bytes=least_bytes,
            )
        )

    def end(self, request: str, runner: int, least_bytes: int = 0) -> list[str]:
        return self.feed(Released(RequestId(request), RunnerId(runner), E1, least_bytes=least_bytes))

    def later(self, seconds: float) -> list[str]:
        self.now += seconds
        return self.feed(Tick())

    def view(self, runner: int) -> Runner:
        return self.scheduler.fleet.runners[RunnerId(runner)]

    def conclusion(self) -> str:
        return why(self.scheduler.state, self.scheduler.policy, A, now=self.now).conclusion

    def standings(self) -> list[str]:
        told = why(self.scheduler.state, self.scheduler.policy, A, now=self.now)
        return [row.candidate.standing for row in told.runners]


def _told(action: Action) -> str:
    match action:
        case Dispatch():
            return f"{action.request}@{action.runner}"
        case Load():
            return f"load {action.hint}@{action.runner}"
        case Refuse(code="load_failed"):
            assert action.failure is not None
            return f"{action.request}!{action.failure.status}"
        case Refuse():
            return f"{action.request}!{action.code}"
        case TellWish():
            return f"wish {action.number} {action.news}"


# --- load jobs -----------------------------------------------------------------------------------


def test_what_has_no_room_on_one_runner_is_loaded_on_another_and_nobody_hears_of_it() -> None:
    play = Play(SMALL, LARGE)
    play.up(1, LARGE, executing="x")  # busy: only the small one can begin
    assert play.come("1") == ["load A@0"]
    assert play.fail(0) == [], "it waits for the large one, although the small one is free"
    assert play.standings() == ["refused it", "busy"]
    assert "runner 0 had no room for it 0.0 s ago" in play.conclusion()
    assert play.end("x", 1) == ["load A@1"]


def test_the_next_request_does_not_go_where_there_was_no_room_until_that_is_old() -> None:
    play = Play(SMALL, LARGE)
    play.up(1, LARGE, executing="x")
    play.come("1"), play.fail(0)
    assert play.come("2") == []
    assert play.later(BELIEVED_S - 1) == []
    assert play.later(1) == ["load A@0"], "room may have changed"
    assert play.fail(0) == []
    assert play.later(2 * BELIEVED_S - 1) == [], "believed for twice as long"
    assert play.later(1) == ["load A@0"]


def test_what_has_no_room_anywhere_is_refused_in_the_words_of_the_runner_and_asked_for_again_now_and_then() -> (
    None
):
    play = Play(SMALL, LARGE)
    assert [*play.come("1"), *play.come("2")] == ["load A@0"]
    assert play.fail(0) == ["load A@1"]
    assert play.fail(1) == ["1!507", "2!507"]
    assert play.come("3") == ["3!507"]
    assert (
        "would be refused: no runner had room for it when it was last asked, 0.0 s ago" in play.conclusion()
    )
    play.later(BELIEVED_S)
    assert play.come("4") == ["4@0"], "as part of its execution, so that nothing else has to leave for it"
    assert play.end("4", 0, least_bytes=NEEDS) == []
    assert play.come("5") == ["5@1"], "its time was over, too"


def test_a_refusal_is_told_with_what_the_runner_said() -> None:
    play = Play(SMALL)
    play.come("1")
    [refuse] = play.scheduler.handle(
        LoadEnded(RunnerId(0), E1, A, ok=False, load_s=0.0, failure=NO_ROOM, least_bytes=NEEDS), now=0.0
    )
    assert refuse == Refuse(RequestId("1"), "load_failed", failure=NO_ROOM)


def test_a_queued_job_is_executed_all_the_same_so_that_the_app_s_answer_is_kept() -> None:
    play = Play(SMALL)
    play.come("direct"), play.come("job", job=True)
    assert play.fail(0) == ["direct!507", "job@0"]


def test_who_may_come_back_is_waited_for() -> None:
    play = Play(SMALL)
    play.feed(RunnerDown(RunnerId(1), returns=True))
    play.come("1")
    assert play.fail(0) == []
    assert play.come("2") == []
    assert "a request" not in play.conclusion()
    assert play.up(1, LARGE) == ["load A@1"]


def test_nobody_waits_for_a_runner_that_cannot_have_room_by_what_is_known() -> None:
    small = replace(SMALL, run_bytes=None)
    play = Play(LARGE, small)
    play.scheduler.state.costs.declare(A, NEEDS)  # more than the small one has
    assert [*play.come("1"), *play.come("job", job=True)] == ["load A@0"]
    assert play.fail(0) == ["1!507", "job@0"], "another program has the large one"
    assert play.come("2") == []
    assert play.end("job", 0, least_bytes=NEEDS) == ["2!507"]
    assert "would be refused: no runner had room for it" in play.conclusion()


def test_nobody_waits_for_a_runner_whose_pins_leave_no_room() -> None:
    play = Play(LARGE, LARGE)
    for model, size in ((A, NEEDS), (B, 40 * GiB)):
        play.scheduler.state.costs.declare(model, size)
    play.feed(PinsChanged(RunnerId(1), E1, frozenset({B})))
    assert play.come("1") == ["load A@0"]
    assert play.fail(0) == ["1!507"]
    play.feed(PinsChanged(RunnerId(1), E1, frozenset()))
    assert play.come("2") == ["2@1"], "there is room now"


def test_the_last_that_had_room_is_gone_and_those_who_wait_for_it_hear_why() -> None:
    play = Play(SMALL, LARGE)
    play.up(1, LARGE, executing="x")
    play.come("1"), play.fail(0)
    assert play.feed(RunnerDown(RunnerId(1), returns=False)) == ["1!507"]


def test_nobody_is_refused_what_somebody_holds() -> None:
    play = Play(SMALL, LARGE)
    play.up(1, LARGE, "A", executing="x")
    play.scheduler.state.refused(A, play.view(0), NEEDS, NO_ROOM, now=0.0)
    play.scheduler.state.refused(A, play.view(1), NEEDS, NO_ROOM, now=0.0)
    assert play.come("1") == []
    assert play.standings() == ["refused it", "warm, busy"]
    assert "would wait" in play.conclusion() or "holds for runner 1" in play.conclusion()
    assert play.end("x", 1) == ["1@1"]


def test_a_like_card_is_not_asked_if_the_model_needs_more_than_it_has() -> None:
    play = Play(SMALL, SMALL)
    play.come("1")
    assert play.fail(0) == ["1!507"]


def test_a_like_card_is_asked_if_the_model_could_have_room_there() -> None:
    play = Play(SMALL, SMALL)
    play.come("1")
    assert play.fail(0, least_bytes=10 * GiB) == ["load A@1"], "others may have something of the first one"


def test_a_like_card_that_is_believed_no_more_is_asked_whatever_the_other_said() -> None:
    refusals = Refusals()
    one, two = (Runner(RunnerId(n), E1, 1, frozenset(), SMALL) for n in range(2))
    refusals.note(A, one, NEEDS, NO_ROOM, now=0.0)
    assert refusals.of(A, two) is not None
    assert refusals.of(A, replace(two, caps=replace(SMALL, vram_bytes=None))) is None
    assert refusals.of(A, replace(two, caps=replace(SMALL, gpu="other"))) is None
    refusals.note(A, two, NEEDS, NO_ROOM, now=10.0)
    assert refusals.expire(now=BELIEVED_S)
    assert refusals.of(A, one) is None, "it is asked itself"
    assert refusals.of(A, two) is not None
    assert not refusals.expire(now=BELIEVED_S + 1)


def test_a_failure_that_says_nothing_of_room_is_heard_by_executing() -> None:
    for failure, least_bytes in ((None, 0), (Failure(500, "x", "y"), 0), (None, NEEDS)):
        play = Play(SMALL, LARGE)
        play.come("1")
        assert play.fail(0, failure, least_bytes) == ["1@0"]


def test_a_runner_that_executes_meanwhile_may_have_room_when_that_is_over() -> None:
    play = Play(replace(SMALL, overlaps=True), slots=2)
    play.up(0, replace(SMALL, overlaps=True), executing="x")
    play.come("1")
    assert play.fail(0, least_bytes=10 * GiB) == ["1@0"], "its client hears what there is then"


def test_what_needs_more_than_the_whole_card_has_no_room_there_whoever_executes_meanwhile() -> None:
    overlapping = replace(SMALL, overlaps=True)
    play = Play(overlapping, LARGE, slots=2)
    play.up(0, overlapping, executing="x")
    play.up(1, LARGE, executing="y z")
    assert play.come("1") == ["load A@0"]
    assert play.fail(0) == [], "it waits for the large one"
    assert [*play.end("y", 1), *play.end("z", 1)] == ["load A@1"]


@pytest.mark.parametrize("change", ["pins", "hints", "incarnation", "load"])
def test_what_a_runner_refused_is_forgotten_when_its_room_changes(change: str) -> None:
    play = Play(SMALL)
    play.come("1"), play.fail(0)
    assert play.come("2") == ["2!507"]
    match change:
        case "pins":
            play.feed(PinsChanged(RunnerId(0), E1, frozenset({B})))
        case "hints":
            play.feed(HintsChanged(RunnerId(0), E1, frozenset({A})))
            play.feed(HintsChanged(RunnerId(0), E1, frozenset()))
        case "incarnation":
            play.up(0, SMALL, epoch=2)
        case _:
            play.feed(Wished(1, A))
            play.feed(LoadEnded(RunnerId(0), E1, A, ok=True, load_s=1.0))
            play.feed(HintsChanged(RunnerId(0), E1, frozenset()))
    assert play.come("3") != ["3!507"]


def test_a_stream_that_broke_changes_nothing() -> None:
    play = Play(SMALL)
    play.come("1"), play.fail(0)
    play.up(0, SMALL)
    assert play.come("2") == ["2!507"]


# --- what no other runner would say otherwise ------------------------------------------------------


def test_all_who_wait_for_a_model_that_there_is_not_hear_that_from_the_one_load_that_failed() -> None:
    play = Play(SMALL, LARGE)
    assert [*play.come("1"), *play.come("2"), *play.come("job", job=True)] == ["load A@0"]
    assert play.fail(0, UNKNOWN, 0) == ["1!404", "2!404", "job@0"]
    play.end("job", 0)
    assert play.come("3") == ["3@0"], "there may be such a model by now"


def test_a_failure_of_the_moment_is_not_told_to_all() -> None:
    play = Play(SMALL)
    play.come("1"), play.come("2")
    assert play.fail(0, Failure(429, "busy", "later"), 0) == ["1@0"]


def test_a_further_copy_that_fails_concerns_nobody_who_can_be_served() -> None:
    play = Play(SMALL, LARGE)
    play.up(1, LARGE, "A", executing="x")
    play.come("1")
    play.feed(Wished(1, A, RunnerId(0)))
    assert play.fail(0, UNKNOWN, 0) == ["wish 1 failed"]


# --- executions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Auto(), Affinity(hold_s=10.0, bypass_max_s=30.0)])
def test_a_request_that_was_answered_so_has_the_next_one_go_elsewhere(policy: Policy) -> None:
    play = Play(COLD, replace(COLD, gpu="large"), policy=policy)
    assert play.come("1") == ["1@0"]
    assert play.end("1", 0, least_bytes=NEEDS) == []
    play.up(1, replace(COLD, gpu="large"), executing="x")
    assert play.come("2") == [], "it waits for the other, which is busy"
    assert play.come("b", B) == ["b@0"], "which holds nobody else up"
    assert play.end("x", 1) == ["2@1"]
    assert play.end("2", 1, least_bytes=NEEDS) == []
    assert play.come("3") == ["3!507"]


def test_those_who_wait_hear_it_when_the_last_runner_has_answered_so() -> None:
    play = Play(COLD)
    play.come("1"), play.come("2")
    assert play.end("1", 0, least_bytes=NEEDS) == ["2!507"]


def test_a_request_that_had_no_room_beside_others_teaches_nothing_of_what_there_is_without_them() -> None:
    play = Play(COLD, slots=2)
    assert [*play.come("1"), *play.come("b", B)] == ["1@0", "b@0"]
    assert play.end("1", 0, least_bytes=NEEDS) == []
    assert play.come("2") == ["2@0"]


def test_a_request_without_a_model_teaches_nothing_of_room() -> None:
    play = Play(COLD)
    play.feed(Arrived(RequestId("1"), None, ""))
    assert play.end("1", 0, least_bytes=NEEDS) == []
    assert play.come("2") == ["2@0"]


def test_an_overdue_request_waits_for_who_has_room_and_lets_others_by() -> None:
    play = Play(COLD, replace(COLD, gpu="large"), policy=Affinity(hold_s=1.0, bypass_max_s=5.0))
    play.up(1, replace(COLD, gpu="large"), executing="x")
    play.come("1")
    play.end("1", 0, least_bytes=NEEDS)
    assert play.come("2") == []
    play.now = 6.0
    assert play.come("b", B) == ["b@0"]
    assert play.end("x", 1) == ["2@1"]


@pytest.mark.parametrize("waits_too", [False, True])
def test_an_overdue_request_is_not_held_up_by_an_older_one_that_waits_for_who_has_room(
    waits_too: bool,
) -> None:
    play = Play(COLD, replace(COLD, gpu="large"), policy=Affinity(hold_s=1.0, bypass_max_s=5.0))
    play.up(1, replace(COLD, gpu="large"), executing="x")
    play.up(0, COLD, "C", executing="y")
    play.scheduler.state.refused(A, play.view(0), NEEDS, NO_ROOM, now=0.0)
    assert [*play.come("1"), *(play.come("2") if waits_too else ()), *play.come("b", B)] == []
    play.now = 4.0
    assert play.come("c", Hint("C")) == []
    play.now = 6.0
    assert play.end("y", 0) == ["b@0"], "a hit that is younger waits"
    assert play.end("x", 1) == ["1@1"]


def test_a_slot_is_not_kept_free_for_what_has_no_room_there() -> None:
    play = Play(LARGE, slots=2)
    play.up(0, LARGE, "B", executing="x")
    play.feed(RunnerDown(RunnerId(1), returns=True))
    play.scheduler.state.refused(A, play.view(0), NEEDS, NO_ROOM, now=0.0)
    assert play.come("1") == []
    assert play.come("2", B) == ["2@0"]


def test_a_slot_is_kept_free_for_what_has_no_room_on_another_runner() -> None:
    one = replace(LARGE, vram_bytes=None, models_max=1)
    play = Play(SMALL, one, slots=2)
    play.up(1, one, "B")
    play.scheduler.state.refused(A, play.view(0), NEEDS, NO_ROOM, now=0.0)
    assert play.come("b", B) == ["b@1"]
    assert play.come("1") == []
    play.now = 1000.0
    for model in (A, B):
        play.scheduler.state.refused(model, play.view(0), NEEDS, NO_ROOM, now=play.now)
    assert play.come("2", B) == [], "it would keep the only model that may leave for the other"
    assert play.end("b", 1) == ["load A@1"]


def test_an_execution_does_not_keep_the_only_room_that_a_model_has_because_there_is_some_where_it_has_none() -> (
    None
):
    beside = replace(SMALL, overlaps=True)
    one = replace(LARGE, overlaps=True, vram_bytes=None, models_max=1)
    play = Play(beside, one)
    play.up(1, one, "B")
    for model in (A, B):
        play.scheduler.state.refused(model, play.view(0), NEEDS, NO_ROOM, now=0.0)
    assert [*play.come("b", B), *play.come("1")] == ["b@1"]
    play.now = 20.0
    for model in (A, B):  # so quick that whoever comes later is due later
        play.scheduler.state.costs.executed(model, "", 0.001)
        play.scheduler.state.costs.loaded(model, "disk", 0.001)
    assert play.come("2", B) == []
    assert play.end("b", 1) == ["load A@1"]


def test_an_execution_is_not_held_back_for_a_load_that_has_no_room_anywhere() -> None:
    overlapping = replace(LARGE, overlaps=True)
    play = Play(overlapping)
    play.up(0, overlapping, "B")
    play.feed(RunnerDown(RunnerId(1), returns=True))
    play.scheduler.state.refused(A, play.view(0), NEEDS, NO_ROOM, now=0.0)
    for model in (A, B):  # so quick that whoever comes later is due later
        play.scheduler.state.costs.executed(model, "", 0.001)
        play.scheduler.state.costs.loaded(model, "disk", 0.001)
    assert play.come("1") == []
    assert play.later(20.0) == []
    assert play.come("2", B) == ["2@0"]


# --- wishes ----------------------------------------------------------------------------------------


def test_a_person_s_wish_is_tried_whatever_was_said_and_one_of_the_configuration_is_not() -> None:
    play = Play(SMALL)
    play.come("1"), play.fail(0)
    assert play.feed(Wished(1, A)) == ["load A@0", "wish 1 begun"]
    assert play.fail(0) == ["wish 1 failed"]
    play.feed(RunnerDown(RunnerId(1), returns=True))
    assert play.feed(Wished(2, A, first=False)) == ["wish 2 full"]


def test_who_comes_while_a_person_has_it_tried_once_more_waits_for_that() -> None:
    play = Play(SMALL)
    play.come("1"), play.fail(0)
    play.feed(Wished(1, A))
    assert play.come("2") == []
    assert play.fail(0) == ["wish 1 failed", "2!507"]


# --- bounds ----------------------------------------------------------------------------------------


def test_no_refusal_is_believed_for_ever_and_no_more_models_are_known_than_there_may_be() -> None:
    refusals, now = Refusals(), 0.0
    runner = Runner(RunnerId(0), E1, 1, frozenset(), SMALL)
    for _ in range(10):
        refusals.note(A, runner, NEEDS, NO_ROOM, now=now)
        now += BELIEVED_MAX_S
        assert refusals.expire(now=now)
    assert refusals.of(A, runner) is None
    refusals.note(A, runner, NEEDS, NO_ROOM, now=now)
    for n in range(MODELS_MAX):
        assert refusals.of(A, runner) is not None
        refusals.note(Hint(str(n)), runner, NEEDS, NO_ROOM, now=now)
    assert refusals.of(A, runner) is None


def test_what_is_refused_again_while_that_is_believed_is_not_believed_for_longer() -> None:
    refusals = Refusals()
    runner = Runner(RunnerId(0), E1, 1, frozenset(), SMALL)
    for _ in range(10):  # as many queued jobs, one after the other
        refusals.note(A, runner, NEEDS, NO_ROOM, now=1.0)
    assert not refusals.expire(now=BELIEVED_S)
    assert refusals.expire(now=1.0 + BELIEVED_S)
    assert refusals.of(A, runner) is None


def test_what_one_runner_holds_says_nothing_of_another() -> None:
    refusals = Refusals()
    one, two = (Runner(RunnerId(n), E1, 1, frozenset(), LARGE) for n in range(2))
    refusals.note(A, one, NEEDS, NO_ROOM, now=0.0)
    refusals.note(A, two, NEEDS, NO_ROOM, now=1.0)
    refusals.note(B, two, NEEDS, NO_ROOM, now=1.0)
    latest = refusals.everywhere(A, [two, one])
    assert latest is not None
    assert latest.at == 1.0
    refusals.found([A, Hint("C")], one.runner)
    assert (refusals.of(A, one), refusals.everywhere(A, [one, two])) == (None, None)
    assert refusals.of(A, two) is not None
    refusals.forget(two.runner)
    assert refusals.everywhere(A, [two]) is None
    assert refusals.everywhere(B, [two]) is None
