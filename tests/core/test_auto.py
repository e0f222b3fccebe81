"""`auto`: properties over arbitrary arrivals, and small scenes with one right answer each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falctl.core.events import (
    Action,
    Arrived,
    Dispatch,
    HintsChanged,
    Load,
    LoadEnded,
    Released,
    RunnerUp,
    Tick,
)
from falctl.core.fleet import Runner
from falctl.core.policies import Auto, Execute, Fal, Move, State
from falctl.core.policies.base import LoadModel
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.look import FRESH_S, OVERDUE, STRANGE_S
from falctl.core.queue import Waiting
from falctl.core.scheduler import Scheduler
from falctl.core.types import Caps, Epoch, Hint, RequestId, RunnerId, Wanted
from falctl.replay.report import figures
from falctl.replay.trace import Job
from falctl.replay.world import Setting, World

E1 = Epoch(1)
KNOBS = Knobs()


class Watched:
    """`auto`, with every move checked before it is made, and remembered."""

    def __init__(self, knobs: Knobs = KNOBS) -> None:
        self.auto = Auto(knobs)
        self.moves: list[tuple[float, Move]] = []
        self._bounds: list[tuple[float, float]] = []

    def choose(self, state: State, *, now: float) -> Move | None:
        move = self.auto.choose(state, now=now)
        bound_s = self._bound_s(state, now)
        match move:
            case LoadModel():
                check_load(state, move)
                check_load_turn(state, move, bound_s)
            case Execute():
                check_turn(state, move, bound_s)
            case None:
                pass
        if move is not None:
            self.moves.append((now, move))
        return move

    def _bound_s(self, state: State, now: float) -> float:
        """H: the head start that others can have over a request, by what was known in the life of one look."""
        costs = state.costs
        bound_s = self.auto.knobs.head_start_max * (costs.mean_exec.value + costs.mean_load.value)
        self._bounds = [(at, s) for at, s in self._bounds if now - at <= FRESH_S] + [(now, bound_s)]
        return max(s for _, s in self._bounds) + 1e-6


def check_load(state: State, move: LoadModel) -> None:
    runner = state.fleet.runners[move.runner]
    assert runner.hints is not None
    assert set(move.evict) <= runner.hints, "only what is resident can be evicted"
    assert not any(runner.executes(v) or v in runner.loading for v in move.evict)
    kept = (runner.hints - set(move.evict)) | {move.hint}
    if runner.caps.vram_bytes is None:
        assert runner.caps.models_max is not None
        assert len(kept) <= runner.caps.models_max
    else:
        assert sum(state.costs.size_bytes(h) or 0 for h in kept) <= runner.caps.vram_bytes
    assert state.queue.count(move.hint), "a load that nobody waits for"


def check_turn(state: State, move: Execute, bound_s: float) -> None:
    """Nobody loses this slot, or the last room for a load, to one who is due later than the bound."""
    runner = state.fleet.runners[move.runner]
    chosen = next(w for w in state.queue if w.request == move.request)
    for waiting in state.queue:
        if chosen.due <= waiting.due + bound_s:
            continue
        assert waiting.hint not in (runner.hints or ()), "bypassed beyond the bound"
        assert not takes_last_room(state, move, waiting, bound_s), "its room was taken beyond the bound"


def check_load_turn(state: State, move: LoadModel, bound_s: float) -> None:
    """No load goes to a model that is due later than the bound while an earlier one has room there."""
    head = state.queue.head(move.hint)
    assert head is not None
    for waiting in state.queue:
        if head.due > waiting.due + bound_s and is_homeless(state, waiting.hint):
            room = has_room(state, state.fleet.runners[move.runner], waiting, bound_s)
            assert not room, "its load was bypassed beyond the bound"


def is_homeless(state: State, hint: Hint | None) -> bool:
    """Return whether nobody holds, loads or executes *hint*."""
    runners = state.fleet.runners.values()
    return not any(
        hint in (r.hints or ()) or hint in r.loading or r.executes(hint or Hint("")) for r in runners
    )


def takes_last_room(state: State, move: Execute, waiting: Waiting, bound_s: float) -> bool:
    """Return whether the model that *waiting* wants could be loaded somewhere before *move*, and nowhere after it."""
    if waiting.hint is None or not is_homeless(state, waiting.hint) or waiting.hint in state.fleet.unloadable:
        return False
    runners = [r for r in state.fleet.runners.values() if can_begin(r)]
    if not any(has_room(state, r, waiting, bound_s) for r in runners):
        return False
    after = [r for r in runners if r.runner != move.runner or r.caps.overlaps]
    pinned = next(w.hint for w in state.queue if w.request == move.request)
    return not any(
        has_room(state, r, waiting, bound_s, pinned if r.runner == move.runner else None) for r in after
    )


def can_begin(runner: Runner) -> bool:
    return runner.can_load if runner.caps.loads else bool(runner.free_slots)


def has_room(
    state: State, runner: Runner, waiting: Waiting, bound_s: float, pinned: Hint | None = None
) -> bool:
    """Return by plain counting whether *runner* could make room with what may go."""
    held = runner.hints or frozenset()
    going = [h for h in held if h != pinned and not runner.executes(h) and may_go(state, h, waiting, bound_s)]
    sizes = {h: state.costs.size_bytes(h) or 1 for h in (*held, *runner.loading, waiting.hint or Hint(""))}
    if runner.caps.vram_bytes is None:
        sizes = dict.fromkeys(sizes, 1)
    limit = runner.caps.models_max if runner.caps.vram_bytes is None else runner.caps.vram_bytes
    return limit is None or sum(sizes.values()) - sum(sizes[h] for h in going) <= limit


def may_go(state: State, victim: Hint, waiting: Waiting, bound_s: float) -> bool:
    """Return whether nobody waits for *victim*, or there is another copy, or it is due beyond the bound."""
    copies = sum(victim in (r.hints or ()) or victim in r.loading for r in state.fleet.runners.values())
    head = state.queue.head(victim)
    return head is None or copies > 1 or head.due > waiting.due + bound_s


jobs_of = st.lists(
    st.tuples(
        st.floats(0, 8),
        st.integers(0, 6),
        st.floats(0.1, 10),
        st.floats(0.5, 30),
        st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=60,
)
settings_of = st.builds(
    Setting,
    runners=st.integers(1, 4),
    models_max=st.integers(1, 3),
    loads=st.booleans(),
    overlaps=st.booleans(),
    overlap_slowdown=st.sampled_from([0.0, 0.2]),
)


def jobs_from(rows: list[tuple[float, int, float, float, str]]) -> list[Job]:
    at, jobs = 0.0, []
    for gap, model, exec_s, load_s, client in rows:
        at += gap
        jobs.append(Job(at, Hint(f"m{model}"), exec_s, load_s, (model + 1) * 10**9, client))
    return jobs


@settings(max_examples=150, deadline=None)
@given(jobs_of, settings_of, st.booleans(), st.sampled_from([0.1, 0.5, 2.0, KNOBS.head_start_max]))
def test_whatever_arrives_every_move_is_allowed_and_everybody_is_served(
    rows: list[tuple[float, int, float, float, str]], setting: Setting, by_bytes: bool, head_start_max: float
) -> None:
    jobs = jobs_from(rows)
    if by_bytes:
        setting = replace(setting, models_max=None, vram_bytes=9 * 10**9)
    watched = Watched(replace(KNOBS, head_start_max=head_start_max))
    outcome = World(jobs, watched, setting, check=True).run()
    assert all(latency > 0 for latency in outcome.latency_s)
    # A copy that was loaded may go unused, if that makes room for what came later and is due before.
    assert len(outcome.loads) <= 2 * len(jobs), "loads without end"


@settings(max_examples=50, deadline=None)
@given(jobs_of, st.integers(0, 60), st.randoms(use_true_random=False), settings_of)
def test_another_future_changes_no_decision_before_it(
    rows: list[tuple[float, int, float, float, str]], cut: int, rng: Random, setting: Setting
) -> None:
    jobs = jobs_from(rows)
    past, future = jobs[:cut], jobs[cut:]
    facts = list(future)
    rng.shuffle(facts)
    shuffled = [replace(fact, t_s=job.t_s) for job, fact in zip(future, facts, strict=True)]
    until = future[0].t_s if future else float("inf")
    told = []
    for version in (jobs, past + shuffled):
        watched = Watched()
        World(version, watched, setting).run()
        told.append([(at, move) for at, move in watched.moves if at < until])
    assert told[0] == told[1]


# --- scenes ------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A few runners with three places each; executions and loads end when the scene says so."""

    runners: tuple[str, ...]
    overlaps: bool = True
    knobs: Knobs = KNOBS
    now: float = 0.0
    n: int = 0
    scheduler: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(Auto(self.knobs), queue_max=1000)
        caps = Caps("card", loads=True, overlaps=self.overlaps, models_max=3)
        for runner, hints in enumerate(self.runners):
            resident = frozenset(Hint(h) for h in hints.split())
            self.feed(RunnerUp(RunnerId(runner), E1, 1, (), resident, caps))

    def learn(self, model: str, *, exec_s: float, load_s: float) -> None:
        costs = self.scheduler.state.costs
        for _ in range(3):
            costs.executed(Hint(model), "card", exec_s)
            costs.loaded(Hint(model), "disk", load_s)

    def feed(self, event: object) -> list[str]:
        actions = self.scheduler.handle(event, now=self.now)  # type: ignore[arg-type]
        self.scheduler.check()
        return [told(action) for action in actions]

    def come(self, *models: str) -> list[str]:
        actions: list[str] = []
        for model in models:
            self.n += 1
            self.now += 0.01
            actions += self.feed(
                Arrived(RequestId(f"{model}{self.n}"), Wanted(Hint(model), "header"), f"c{self.n}")
            )
        return actions

    def done(self, request: str, runner: int) -> list[str]:
        return self.feed(Released(RequestId(request), RunnerId(runner), E1, 1.0, 0.0))


def told(action: Action) -> str:
    match action:
        case Dispatch(request, runner):
            return f"{request}@{runner}"
        case Load(runner, _, hint, evict):
            return f"{hint}>{runner}" + "".join(f"-{v}" for v in evict)
        case _:
            return str(action)


def test_a_model_that_nobody_holds_is_loaded_where_there_is_room() -> None:
    s = Scene(("x y z", "v w"))
    assert s.come("new") == ["new>1"]
    assert s.feed(LoadEnded(RunnerId(1), E1, Hint("new"), ok=True, load_s=5.0)) == ["new1@1"]


def test_those_who_wait_for_a_model_share_one_load() -> None:
    s = Scene(("", ""))
    assert s.come("x", "x", "x") == ["x>0"]
    assert s.feed(LoadEnded(RunnerId(0), E1, Hint("x"), ok=True, load_s=5.0)) == ["x1@0"]


def test_the_first_load_of_a_model_may_take_far_longer_than_others_did_before_a_second_one_begins() -> None:
    s = Scene(("", ""), overlaps=False)
    s.learn("tiny", exec_s=0.1, load_s=0.2)
    assert s.come("huge") == ["huge>0"]
    s.now += OVERDUE * STRANGE_S - 1
    assert s.feed(Tick()) == []
    s.now += 2
    assert s.feed(Tick()) == ["huge>1"], "by then it may hang"


def test_a_load_that_takes_far_longer_than_those_of_the_same_model_did_is_not_waited_for() -> None:
    s = Scene(("", ""), overlaps=False)
    s.learn("x", exec_s=0.1, load_s=0.2)
    assert s.come("x") == ["x>0"]
    s.now += 2 * STRANGE_S
    assert s.feed(Tick()) == ["x>1"]


def test_a_request_holds_for_a_busy_holder_when_that_is_cheaper_than_a_load() -> None:
    s = Scene(("x", ""))
    s.learn("x", exec_s=2.0, load_s=8.0)
    assert s.come("x") == ["x1@0"]
    assert s.come("x", "x") == []


def test_a_further_copy_is_loaded_when_the_backlog_costs_more_than_it() -> None:
    s = Scene(("x", ""))
    s.learn("x", exec_s=2.0, load_s=8.0)
    moves = s.come(*["x"] * 60)
    assert moves[0] == "x1@0"
    assert moves[1:] == ["x>1"], "one copy, once"


def test_a_copy_is_not_loaded_over_models_that_are_worth_more_than_it_saves() -> None:
    moves = {}
    for others in ("", "a b c"):
        s = Scene(("x", others))
        for model in ("x", *others.split()):
            s.learn(model, exec_s=2.0, load_s=8.0)
        for n in range(300):
            s.scheduler.state.demand.arrived(Hint("abc"[n % 3]), f"k{n}", now=n * 10.0)
        s.now = 3000.0
        moves[others] = s.come(*["x"] * 16)[1:]
    assert moves == {"": ["x>1"], "a b c": []}


def test_the_users_knob_makes_copies_dearer() -> None:
    waiting_until_copy = {}
    for locality in (0.2, 1.0, 4.0):
        s = Scene(("x", ""), knobs=replace(KNOBS, locality=locality))
        s.learn("x", exec_s=2.0, load_s=8.0)
        while not any(">" in move for move in s.come("x")):
            assert s.n < 500
        waiting_until_copy[locality] = s.n
    assert waiting_until_copy[0.2] < waiting_until_copy[1.0] < waiting_until_copy[4.0]


def test_an_executing_model_is_never_a_victim_even_if_it_is_worth_least() -> None:
    s = Scene(("a b c",))
    for model in "abc":
        s.learn(model, exec_s=2.0, load_s=8.0)
    s.scheduler.state.demand.arrived(Hint("b"), "", now=0.0)
    s.scheduler.state.demand.arrived(Hint("c"), "", now=1.0)
    s.now = 2.0
    assert s.come("a") == ["a1@0"]
    [load] = s.come("new")
    assert load in ("new>0-b", "new>0-c")


def test_a_runner_runs_first_what_only_it_can_run() -> None:
    s = Scene(("shared scarce", "shared"))
    for model in ("shared", "scarce", "blocker"):
        s.learn(model, exec_s=2.0, load_s=8.0)
    assert s.come("shared", "shared") == ["shared1@0", "shared2@1"]
    assert s.come("shared", "scarce") == []
    s.now = 2.0
    assert s.done("shared1", 0) == ["scarce4@0"]
    assert s.done("shared2", 1) == ["shared3@1"]


def test_short_work_goes_first_inside_its_head_start_and_not_beyond() -> None:
    for later_s, first in ((20.0, "short3@0"), (60.0, "long2@0")):
        s = Scene(("long short",))
        s.learn("long", exec_s=10.0, load_s=8.0)
        s.learn("short", exec_s=1.0, load_s=8.0)
        assert s.come("long", "long") == ["long1@0"]
        s.now += later_s
        s.come("short")
        assert s.done("long1", 0) == [first]


def test_a_model_that_failed_to_load_is_executed_so_that_its_client_hears_why() -> None:
    s = Scene(("",))
    assert s.come("bad") == ["bad>0"]
    assert s.feed(LoadEnded(RunnerId(0), E1, Hint("bad"), ok=False, load_s=1.0)) == ["bad1@0"]
    assert s.come("bad") == [], "its runner is busy"
    assert s.done("bad1", 0) == ["bad2@0"]


def test_no_load_begins_beside_an_execution_where_the_runner_cannot() -> None:
    s = Scene(("x",), overlaps=False)
    assert s.come("x") == ["x1@0"]
    assert s.come("y") == []
    assert s.done("x1", 0) == ["y>0"]


def test_a_runner_that_only_gives_hints_is_sent_the_cold_request_and_others_join_it() -> None:
    s = Scene(())
    s.feed(RunnerUp(RunnerId(0), E1, 1, (), frozenset()))
    s.feed(RunnerUp(RunnerId(1), E1, 1, (), frozenset()))
    assert s.come("x") == ["x1@0"]
    assert s.come("x") == [], "runner 0 is about to be warm for it"
    s.feed(HintsChanged(RunnerId(0), E1, frozenset([Hint("x")])))
    assert s.done("x1", 0) == ["x2@0"]


# --- under pressure ----------------------------------------------------------------------------------


def flood(requests: int, *, busy: float, seed: int = 1) -> list[Job]:
    rng = Random(seed)
    jobs, at = [], 0.0
    for n in range(requests):
        at += rng.expovariate(busy * 4 / 3.0)
        model = min(int(rng.paretovariate(0.8)), 20)
        jobs.append(Job(at, Hint(f"m{model}"), 3.0, 8.0, 10**9, f"c{n % 7}"))
    return jobs


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_steady_stream_for_a_hot_model_starves_nobody(overlaps: bool) -> None:
    hot = [Job(n * 1.0, Hint("hot"), 1.2, 6.0, 10**9, "h") for n in range(400)]
    lone = Job(100.5, Hint("lone"), 1.0, 6.0, 10**9, "l")
    jobs = sorted([*hot, lone], key=lambda job: job.t_s)
    outcome = World(jobs, Auto(), Setting(1, models_max=1, overlaps=overlaps), check=True).run()
    waited = outcome.started_s[jobs.index(lone)] - lone.t_s
    head_start = KNOBS.head_start * 1.2 + KNOBS.load_head_start * 6.0
    backlog = 100.5 * 0.2
    assert waited < (head_start + backlog) * 1.3 + 10


@pytest.mark.parametrize("busy", [1.0, 1.5])
def test_overload_neither_thrashes_nor_stops(busy: float) -> None:
    jobs = flood(1500, busy=busy)
    auto = figures(jobs, World(jobs, Watched(), Setting(4)).run(), runners=4)
    fal = figures(jobs, World(jobs, Fal(), Setting(4)).run(), runners=4)
    assert auto.loads_per_1k < 0.6 * fal.loads_per_1k
    assert auto.mean_s < fal.mean_s


def test_executions_slowed_by_a_load_cost_at_most_as_much() -> None:
    mean_s = {0.0: 0.0, 0.2: 0.0}
    for slow in mean_s:
        for seed in range(6):
            jobs = flood(800, busy=0.4, seed=seed)
            outcome = World(jobs, Auto(), Setting(4, overlap_slowdown=slow)).run()
            mean_s[slow] += figures(jobs, outcome, runners=4).mean_s
    assert mean_s[0.0] < mean_s[0.2] <= 1.2 * mean_s[0.0]
