"""The life of a child process, event by event."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.lifecycle import (
    STABLE_S,
    Action,
    BecameReady,
    Begin,
    Condemned,
    CouldNotStart,
    Declared,
    End,
    Event,
    Exited,
    Kill,
    Life,
    LifeLimits,
    Spawn,
    Staged,
    Struck,
    Tick,
    Vitals,
    Watched,
    describe_exit,
    hung,
)
from falctl.core.types import Epoch

LIMITS = LifeLimits(
    setup_timeout_s=600.0,
    request_timeout_s=3600.0,
    stall_timeout_s=120.0,
    restarts_max=5,
    restarts_window_s=600.0,
    backoff_min_s=1.0,
    backoff_max_s=60.0,
)
E1, E2 = Epoch(1), Epoch(2)


def ready_life(at: float = 0.0) -> Life:
    life = Life(LIMITS)
    assert life.handle(Begin(), now=at) == [Spawn(E1)]
    assert life.handle(BecameReady(E1), now=at) == []
    assert life.state == "ready"
    return life


def test_a_start_goes_through_its_stages_to_ready() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    life.handle(Staged(E1, "importing torch"), now=1.0)
    assert (life.state, life.reason) == ("starting", "importing torch")
    life.handle(BecameReady(E1), now=2.0)
    assert (life.state, life.reason, life.since_at) == ("ready", "", 2.0)
    life.handle(Staged(E1, "late news"), now=3.0)
    life.handle(BecameReady(E1), now=3.0)
    assert (life.reason, life.since_at) == ("", 2.0)


def test_a_runner_that_retires_after_a_while_is_replaced_as_often_as_it_likes() -> None:
    life, now = ready_life(), 0.0
    for n in range(1, 3 * LIMITS.restarts_max):
        now += STABLE_S
        life.handle(Exited(Epoch(n), 71, retired=True), now=now)
        assert (life.state, life.restart_at - now) == ("backoff", LIMITS.backoff_min_s)
        assert "its app asked" in life.reason
        now = life.restart_at
        assert life.handle(Tick(), now=now) == [Spawn(Epoch(n + 1))]
        life.handle(BecameReady(Epoch(n + 1)), now=now)


def test_a_runner_that_retires_at_once_each_time_is_given_up() -> None:
    life, now = ready_life(), 0.0
    for n in range(1, LIMITS.restarts_max + 1):
        life.handle(Exited(Epoch(n), 71, retired=True), now=now)
        now = life.restart_at
        life.handle(Tick(), now=now)
        life.handle(BecameReady(Epoch(n + 1)), now=now)
    life.handle(Exited(Epoch(LIMITS.restarts_max + 1), 71, retired=True), now=now)
    assert life.state == "failed"


def test_an_exit_is_followed_by_a_pause_that_doubles_up_to_its_bound() -> None:
    life = Life(LifeLimits(600.0, 3600.0, 120.0, 100, 600.0, 1.0, 60.0))
    life.handle(Begin(), now=0.0)
    now, pauses = 0.0, []
    for n in range(1, 9):
        life.handle(Exited(Epoch(n), 1), now=now)
        assert life.state == "backoff"
        pauses.append(life.restart_at - now)
        assert life.handle(Tick(), now=life.restart_at - 0.01) == []
        now = life.restart_at
        assert life.handle(Tick(), now=now) == [Spawn(Epoch(n + 1))]
        assert life.restarts == n
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_success_resets_the_pause_and_a_short_one_does_not() -> None:
    life = ready_life()
    life.handle(Exited(E1, -9), now=STABLE_S - 0.1)
    life.handle(Tick(), now=100.0)
    life.handle(BecameReady(E2), now=100.0)
    life.handle(Exited(E2, -9), now=100.0 + STABLE_S - 0.1)
    assert life.restart_at - (100.0 + STABLE_S - 0.1) == pytest.approx(2.0)
    life.handle(Tick(), now=200.0)
    life.handle(BecameReady(Epoch(3)), now=200.0)
    life.handle(Exited(Epoch(3), -9), now=200.0 + STABLE_S)
    assert life.restart_at - (200.0 + STABLE_S) == pytest.approx(1.0)


def test_too_many_exits_in_the_window_fail_it_for_good() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    now = 0.0
    for n in range(1, 7):
        assert life.state == "starting"
        life.handle(CouldNotStart(Epoch(n), "setup() raised ValueError: no"), now=now)
        life.handle(Exited(Epoch(n), 1), now=now)
        now += 60.0
        life.handle(Tick(), now=now)
    assert life.state == "failed"
    assert life.reason == "6 exits in 600 s; the last: setup() raised ValueError: no"
    assert life.handle(Tick(), now=now + 1e6) == []


def test_exits_outside_the_window_are_forgotten() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    for n in range(1, 50):
        life.handle(BecameReady(Epoch(n)), now=n * 200.0)
        life.handle(Exited(Epoch(n), 1), now=n * 200.0)
        life.handle(Tick(), now=n * 200.0 + 100)
        assert life.state == "starting", f"exit {n}"


def test_news_of_an_older_incarnation_is_dropped() -> None:
    life = ready_life()
    life.handle(Exited(E1, 1), now=1.0)
    life.handle(Tick(), now=2.0)
    for late in (Exited(E1, 0), BecameReady(E1), CouldNotStart(E1, "x"), Staged(E1, "x"), Watched(E1, None)):
        assert life.handle(late, now=1e9) == []
        assert (life.state, life.epoch) == ("starting", E2)


def test_a_setup_that_hangs_is_killed_once_and_says_where_it_was() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    life.handle(Staged(E1, "setup"), now=1.0)
    assert life.handle(Watched(E1, None), now=600.0) == []
    [kill] = life.handle(Watched(E1, None), now=600.1)
    assert isinstance(kill, Kill)
    assert kill.reason == "not ready within runners.setup_timeout, 600 s (it was at: setup)"
    assert life.handle(Watched(E1, None), now=700.0) == []
    life.handle(Exited(E1, -9), now=700.0)
    assert life.reason == kill.reason


def test_a_start_without_a_stage_is_killed_too() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    life.handle(Staged(E1, ""), now=0.0)
    [kill] = life.handle(Watched(E1, None), now=601.0)
    assert kill == Kill("not ready within runners.setup_timeout, 600 s")


def test_a_ready_runner_without_vitals_is_left_alone() -> None:
    assert ready_life().handle(Watched(E1, None), now=1e6) == []


def test_a_hung_runner_is_killed_and_comes_back() -> None:
    life = ready_life()
    stuck = Vitals(executing_since=10.0, beat_at=10.0, progress_at=10.0, progress_known=False)
    assert life.handle(Watched(E1, stuck), now=130.0) == []
    [kill] = life.handle(Watched(E1, stuck), now=130.5)
    assert isinstance(kill, Kill)
    life.handle(Exited(E1, -9), now=131.0)
    assert (life.state, life.reason) == ("backoff", kill.reason)


@pytest.mark.parametrize(
    ("vitals", "now", "why"),
    [
        (Vitals(None, 0.0, 0.0, True), 1e6, ""),  # idle and silent: silence is not an exit
        (Vitals(0.0, 999.0, 0.0, False), 1000.0, ""),  # a long job of an app that reports nothing
        (Vitals(0.0, 999.0, 0.0, True), 1000.0, "no step for 120 s"),
        (Vitals(0.0, 999.0, 900.0, True), 1000.0, ""),
        (Vitals(0.0, 870.0, 1000.0, True), 1000.0, "event loop has not run"),
        (
            Vitals(0.0, 870.0, 870.0, True, gaps=((870.5, 999.0),)),
            1000.0,
            "",
        ),  # nobody looked, and all were stopped
        (Vitals(0.0, 870.0, 870.0, True, gaps=((870.5, 999.0),)), 1120.0, "event loop has not run"),
        (Vitals(0.0, 1119.0, 870.0, True, gaps=((870.5, 999.0),)), 1120.0, "no step for 120 s"),
        (Vitals(999.0, 0.0, 0.0, True), 1000.0, ""),  # it was idle until now; its beat may be late
        (Vitals(0.0, 3600.5, 3600.5, True), 3600.5, "a request or a load ran for more than 3600 s"),
    ],
)
def test_hung_means_executing_without_a_sign_of_life(vitals: Vitals, now: float, why: str) -> None:
    told = hung(vitals, LIMITS, now=now)
    assert (why in told) if why else told == ""


def test_a_runner_whose_gpu_is_lost_is_killed_and_stays_failed() -> None:
    life = ready_life()
    assert life.handle(Condemned("GPU 1 is lost"), now=5.0) == [Kill("GPU 1 is lost")]
    assert life.handle(Condemned("GPU 1 is lost"), now=6.0) == []
    life.handle(Exited(E1, -9), now=6.0)
    assert (life.state, life.reason) == ("failed", "GPU 1 is lost")
    assert life.handle(Tick(), now=1e6) == []
    assert life.handle(Condemned("again"), now=7.0) == []


def test_a_runner_in_backoff_whose_gpu_is_lost_fails_at_once() -> None:
    life = ready_life()
    life.handle(Exited(E1, 1), now=1.0)
    assert life.handle(Condemned("GPU 1 is lost"), now=1.5) == []
    assert life.state == "failed"


def test_a_runner_whose_gpu_had_an_error_is_killed_once_and_comes_back() -> None:
    life = ready_life()
    assert life.handle(Struck("XID 94"), now=5.0) == [Kill("XID 94")]
    assert life.handle(Struck("XID 48"), now=5.1) == []
    life.handle(Exited(E1, -9), now=5.2)
    assert (life.state, life.reason) == ("backoff", "XID 94")
    assert life.handle(Struck("XID 94"), now=5.3) == []
    assert life.handle(Tick(), now=life.restart_at) == [Spawn(Epoch(2))]
    assert life.handle(Struck("XID 94"), now=7.0) == [Kill("XID 94")]


def test_a_runner_that_is_to_restart_and_whose_gpu_is_then_lost_stays_failed() -> None:
    life = ready_life()
    life.handle(Struck("XID 48"), now=5.0)
    assert life.handle(Condemned("GPU 1 is lost"), now=5.1) == [Kill("GPU 1 is lost")]
    life.handle(Exited(E1, -9), now=5.2)
    assert (life.state, life.reason) == ("failed", "GPU 1 is lost")


def test_a_gpu_error_while_falctl_stops_changes_nothing() -> None:
    life = ready_life()
    life.handle(End(), now=1.0)
    assert life.handle(Struck("XID 94"), now=2.0) == []
    life.handle(Exited(E1, 0), now=3.0)
    assert life.state == "stopped"


def test_an_end_in_any_state_is_followed_by_no_spawn() -> None:
    running = ready_life()
    running.handle(End(), now=1.0)
    states = [running.state]
    running.handle(Exited(E1, 0), now=2.0)
    assert [*states, running.state] == ["draining", "stopped"]
    resting = ready_life()
    resting.handle(Exited(E1, 1), now=1.0)
    resting.handle(End(), now=1.5)
    assert resting.state == "stopped"
    resting.handle(End(), now=1.6)
    assert resting.handle(Tick(), now=1e6) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "exited with code 3"),
        (70, "exited with code 70 (its GPU failed"),
        (72, "exited with code 72 (a request ran for longer"),
        (-9, "killed by SIGKILL (by somebody, or by the kernel for want of memory: see dmesg)"),
        (-11, "killed by SIGSEGV"),
        (-200, "signal 200"),
    ],
)
def test_an_exit_code_is_told_in_words(code: int, words: str) -> None:
    assert words in describe_exit(code)


epochs = st.integers(1, 4).map(Epoch)
vitals = st.none() | st.builds(
    Vitals, st.none() | st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4), st.booleans()
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Staged, epochs, st.text(max_size=3)),
    st.builds(BecameReady, epochs),
    st.builds(CouldNotStart, epochs, st.text(max_size=3)),
    st.builds(Exited, epochs, st.integers(-64, 255)),
    st.builds(Watched, epochs, vitals),
    st.builds(Condemned, st.text(max_size=3)),
    st.builds(Struck, st.text(max_size=3)),
    st.just(End()),
    st.just(Tick()),
)


@given(st.lists(st.tuples(events, st.floats(0, 100)), max_size=60))
def test_there_is_never_more_than_one_incarnation(history: list[tuple[Event, float]]) -> None:
    life = Life(LIMITS)
    alive = len(life.handle(Begin(), now=0.0))
    now = 0.0
    for event, later in history:
        if isinstance(event, Exited) and (event.epoch != life.epoch or not alive):
            continue  # an exit is a fact: it happens once, to what lives
        now += later
        alive -= isinstance(event, Exited)
        actions: list[Action] = life.handle(event, now=now)
        alive += sum(isinstance(a, Spawn) for a in actions)
        assert 0 <= alive <= 1
        assert alive == (life.state in ("starting", "ready", "draining"))
        assert not (life.state == "backoff" and life.restart_at - now > LIMITS.backoff_max_s)
        assert math.isfinite(life.since_at)


def test_a_longer_limit_of_the_app_holds_for_the_incarnation_that_declared_it() -> None:
    life = Life(LIMITS)
    [spawn] = life.handle(Begin(), now=0.0)
    assert isinstance(spawn, Spawn)
    late = LIMITS.setup_timeout_s + 100.0
    assert life.handle(Declared(life.epoch, 500.0, None), now=1.0) == []
    assert life.handle(Watched(life.epoch, None), now=late) == []
    assert life.handle(Watched(life.epoch, None), now=LIMITS.setup_timeout_s + 501.0) != []
    life.handle(Exited(life.epoch, -9), now=late + 500.0)
    life.handle(Tick(), now=late + 600.0)
    assert life.state == "starting"
    assert life.handle(Watched(life.epoch, None), now=late + 600.0 + late) != []


def test_a_request_may_run_as_long_as_the_app_says_and_a_little_longer() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    life.handle(Declared(life.epoch, None, 9000.0), now=0.0)
    life.handle(BecameReady(life.epoch), now=1.0)

    def at(now: float) -> Watched:
        return Watched(life.epoch, Vitals(10.0, now, now, progress_known=False))

    assert life.handle(at(9010.0), now=9010.0) == []
    assert life.handle(at(9041.0), now=9041.0) != []


def test_without_longer_limits_ours_hold() -> None:
    life = Life(LIMITS)
    life.handle(Begin(), now=0.0)
    life.handle(Declared(life.epoch, None, None), now=0.0)
    late = LIMITS.setup_timeout_s + 1.0
    assert life.handle(Watched(life.epoch, None), now=late) != []
