"""Where loads come from: what they cost from there, and what the policies make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.costs import Costs
from falctl.core.events import (
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
    RunnerUp,
    TellWish,
    Tick,
    Wished,
)
from falctl.core.fleet import Runner
from falctl.core.hints import HINT_BYTES_MAX
from falctl.core.policies import Affinity, Auto, Policy
from falctl.core.policies.base import Weighs
from falctl.core.policies.look import look_at
from falctl.core.scheduler import Scheduler
from falctl.core.sources import SHARES, SOURCES, Stock, Tier, bases, join, named
from falctl.core.types import Caps, Epoch, GiB, Hint, RequestId, RunnerId, Wanted
from falctl.core.why import brief, why

A, B, C, D = map(Hint, "ABCD")
BASE, UPON, OTHER = Hint("base"), Hint("base+lora"), Hint("base+other")
E1 = Epoch(1)

OVERLAPS = Caps("card", loads=True, overlaps=True, models_max=2)
APART = Caps("card", loads=True, models_max=2)
JOINED = Caps("card", loads=True, models_max=2, joint="+")
HINTS_ONLY = Caps("card")
SMALL = Caps("card", loads=True, vram_bytes=10 * GiB, run_bytes=40 * GiB)


class Scene:
    """A scheduler whose loads from disk are known to take 10 s and whose executions take 2 s."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.scheduler = Scheduler(policy or Auto(), queue_max=100)
        self.now = 0.0
        self.costs = self.scheduler.state.costs
        for hint in (A, B, C, D, BASE, UPON, OTHER):
            self.costs.executed(hint, "", 2.0)
            self.costs.loaded(hint, "disk", 10.0)

    def feed(self, event: Event) -> list[object]:
        actions = self.scheduler.handle(event, now=self.now)
        self.scheduler.check()
        return list(actions)

    def up(self, runner: int, hints: str = "", *, ram: str = "", caps: Caps = OVERLAPS) -> list[object]:
        held, stock = frozenset(map(Hint, hints.split())), Stock(frozenset(map(Hint, ram.split())))
        return self.feed(RunnerUp(RunnerId(runner), E1, 1, (), held, caps, stock=stock))

    def tell(self, runner: int, *, ram: str = "", sizes: Mapping[Hint, int] | None = None) -> list[object]:
        stock = Stock(frozenset(map(Hint, ram.split())), sizes or {})
        return self.feed(HintsChanged(RunnerId(runner), E1, self.runner(runner).hints, stock))

    def come(self, request: str, hint: Hint | None) -> list[object]:
        wanted = None if hint is None else Wanted(hint, "header")
        return self.feed(Arrived(RequestId(request), wanted, "c"))

    def end(
        self, request: str, runner: int, load_s: float | None = 0.0, tier: Tier | None = "disk"
    ) -> list[object]:
        return self.feed(Released(RequestId(request), RunnerId(runner), E1, 2.0, load_s, tier))

    def loaded(self, runner: int, hint: Hint, load_s: float, tier: Tier = "disk") -> list[object]:
        return self.feed(LoadEnded(RunnerId(runner), E1, hint, ok=True, load_s=load_s, tier=tier))

    def runner(self, runner: int) -> Runner:
        return self.scheduler.fleet.runners[RunnerId(runner)]


def only_load(actions: list[object]) -> Load:
    [load] = actions
    assert isinstance(load, Load)
    return load


def only_dispatch(actions: list[object]) -> Dispatch:
    [dispatch] = actions
    assert isinstance(dispatch, Dispatch)
    return dispatch


# --- bases ---------------------------------------------------------------------------------------


def test_what_may_be_a_base_ends_before_a_joint_longest_first() -> None:
    assert list(bases(Hint("a+b+c"), "+")) == ["a+b", "a"]
    assert list(bases(Hint("a+b"), "")) == [], "nobody has said what joins"
    assert list(bases(Hint("+b"), "+")) == [], "a base has a name"
    assert list(bases(Hint("a"), "+")) == []
    assert list(bases(Hint("a::b::"), "::")) == ["a::b", "a"]


@given(st.text(), st.text(min_size=1, max_size=2))
def test_a_base_is_a_shorter_beginning_with_a_joint_behind_it(hint: str, joint: str) -> None:
    found = list(bases(Hint(hint), joint))
    assert found == sorted(set(found), key=len, reverse=True)
    assert all(hint.startswith(base + joint) and base for base in found)


def test_a_name_is_joined_of_the_files_laid_upon_a_model_in_their_order_without_their_ending() -> None:
    assert join("base", ["b.safetensors", "a", "x.safetensors.bin"], "+") == "base+b+a+x.safetensors.bin"
    assert join("base", [], "+") == "base"


def test_what_is_wanted_has_the_name_that_the_app_joins_if_it_joins_any() -> None:
    plain, laid = Wanted(BASE, "header"), Wanted(BASE, "body", ("lora.safetensors",))
    assert named(plain, "+") is plain
    assert named(laid, "+") == Wanted(UPON, "body")
    assert named(laid, "") == Wanted(BASE, "body"), "to such an app it is one model, whatever is laid upon it"
    whole = HINT_BYTES_MAX - len("base+")
    assert named(Wanted(BASE, "body", ("l" * whole,)), "+").hint == "base+" + "l" * whole
    assert named(Wanted(BASE, "body", ("l" * whole, "")), "+").hint == BASE, "no runner lists it"


@pytest.mark.parametrize(("caps", "runner"), [(JOINED, 1), (APART, 0)])
def test_a_request_goes_to_who_holds_all_that_is_laid_upon_its_model(caps: Caps, runner: int) -> None:
    s = Scene()
    s.up(0, "base", caps=caps), s.up(1, "base+lora base", caps=caps)
    asked = Arrived(RequestId("1"), Wanted(BASE, "body", ("lora",)), "c")
    assert only_dispatch(s.feed(asked)).runner == runner


@pytest.mark.parametrize(("caps", "runner", "hint"), [(JOINED, 1, UPON), (APART, 0, BASE)])
def test_who_came_before_the_app_said_how_it_joins_names_is_known_by_the_joined_one(
    caps: Caps, runner: int, hint: Hint
) -> None:
    s = Scene()
    s.feed(RunnerDown(RunnerId(0), returns=True))
    s.come("plain", A), s.come("none", None)
    s.feed(Arrived(RequestId("1"), Wanted(BASE, "body", ("lora",)), "c"))
    assert s.scheduler.queue.count(BASE) == 1
    busy = RunnerUp(RunnerId(runner), E1, 2, tuple(map(RequestId, "xy")), frozenset({BASE, UPON}), caps)
    assert s.feed(busy) == []
    assert [w.hint for w in s.scheduler.queue] == [A, None, hint]
    [story] = [s.scheduler.decisions.explain(RequestId("1"))]
    assert story is not None
    assert story.story.hint == hint
    again = s.scheduler.queue.get(RequestId("1"))
    s.feed(replace(busy, runner=RunnerId(2)))
    assert s.scheduler.queue.get(RequestId("1")) is again, "that was said already"


def test_a_request_whose_story_is_forgotten_gets_its_joined_name_all_the_same() -> None:
    s = Scene()
    s.scheduler.decisions.requests_max = 1
    s.feed(RunnerDown(RunnerId(0), returns=True))
    s.feed(Arrived(RequestId("1"), Wanted(BASE, "body", ("lora",)), "c")), s.come("2", A)
    s.feed(RunnerUp(RunnerId(0), E1, 1, (RequestId("x"),), frozenset({UPON}), JOINED))
    assert [w.hint for w in s.scheduler.queue] == [UPON, A]


def test_a_plus_in_a_hint_means_nothing_unless_the_app_says_so() -> None:
    runner = Runner(RunnerId(0), E1, 1, frozenset({BASE}), OVERLAPS, in_ram=frozenset({Hint("in")}))
    assert (runner.base(UPON), runner.source(UPON), runner.source(Hint("in+lora"))) == (None, "disk", "disk")
    runner.caps = JOINED
    assert (runner.base(UPON), runner.source(UPON), runner.source(Hint("in+lora"))) == (BASE, "base", "ram")
    assert runner.source(BASE) == "disk", "nothing is its own base"
    assert runner.source(Hint("in")) == "ram"
    runner.hints = None
    assert (runner.base(UPON), runner.source(UPON)) == (None, "disk")


def test_who_holds_what_is_laid_upon_a_base_holds_the_base_and_serves_its_other_kin() -> None:
    runner = Runner(RunnerId(0), E1, 1, frozenset({UPON}), JOINED)
    assert (runner.source(BASE), runner.source(OTHER), runner.source(UPON)) == ("base", "base", "disk")
    assert (runner.kin(BASE), runner.kin(OTHER), runner.kin(UPON)) == (UPON, UPON, None)
    assert runner.source_alone(BASE) == "disk", "it would go with the last that has it"
    assert (runner.source(Hint("bas")), runner.source(Hint("other"))) == ("disk", "disk")
    runner.hints, runner.in_ram = frozenset(), frozenset({UPON})
    assert {runner.source(hint) for hint in (BASE, UPON, OTHER)} == {"ram"}


# --- costs ---------------------------------------------------------------------------------------


def test_a_load_from_a_source_that_nobody_has_loaded_from_is_a_share_of_one_from_disk() -> None:
    costs = Costs()
    costs.loaded(A, "disk", 20.0)
    for source in SOURCES:
        assert costs.load_s(A, source) == 20.0 * SHARES[source]
        assert costs.learnt_load_s(A, source) == (20.0 if source == "disk" else None)


def test_the_share_of_a_source_is_learnt_from_other_models() -> None:
    costs = Costs()
    for hint, disk_s in ((A, 10.0), (B, 20.0)):
        costs.loaded(hint, "disk", disk_s)
    costs.loaded(A, "ram", 3.0)
    assert costs.load_s(A, "ram") == 3.0
    assert costs.load_s(B, "ram") == pytest.approx(20.0 * 3.0 / 15.0)
    costs.loaded(C, "base", 90.0)
    assert costs.load_s(B, "base") == 20.0, "nobody would load from there rather than from disk"


def test_loads_from_ram_do_not_make_loads_from_disk_seem_short() -> None:
    costs = Costs()
    costs.loaded(A, "disk", 10.0)
    for _ in range(1000):
        costs.loaded(A, "ram", 0.1)
    assert costs.load_s(B) == 10.0
    assert costs.mean_load.value < 1.0


def test_where_loads_from_disk_cost_nothing_other_loads_do_neither() -> None:
    costs = Costs()
    costs.loaded(A, "disk", 0.0)
    costs.loaded(A, "ram", 1.0)
    assert costs.load_s(B, "ram") == 0.0


def test_the_pace_of_a_source_tells_what_a_model_of_known_size_takes() -> None:
    costs = Costs()
    costs.declare(A, 10 * GiB)
    costs.declare(B, 20 * GiB)
    costs.loaded(A, "ram", 1.0)
    assert costs.load_s(B, "ram") == pytest.approx(2.0)


def test_what_loads_cost_by_source_outlives_the_router() -> None:
    costs = Costs()
    costs.loaded(A, "disk", 10.0)
    costs.loaded(B, "ram", 2.0)
    again = Costs.restored(costs.dump())
    for hint in (A, B, C):
        for source in SOURCES:
            assert again.load_s(hint, source) == costs.load_s(hint, source)


def test_a_file_that_tells_no_sources_apart_tells_of_loads_from_disk() -> None:
    costs = Costs()
    costs.loaded(A, "disk", 10.0)
    table = costs.dump()
    fleet = table["fleet"]
    assert isinstance(fleet, list)
    table["fleet"] = [row for row in fleet if not str(row[0]).startswith("load from")]
    assert Costs.restored(table).load_s(B) == 10.0


# --- what ends teaches ---------------------------------------------------------------------------


def test_a_cold_execution_teaches_about_the_tier_that_its_host_tells() -> None:
    s = Scene()
    s.up(0, caps=HINTS_ONLY)
    s.come("1", A)
    s.end("1", 0, 0.5, "ram")
    assert (s.costs.load_s(A, "ram"), s.costs.load_s(A)) == (0.5, 10.0)
    [step] = [step for step in s.scheduler.decisions._requests[RequestId("1")].steps if step.kind == "ended"]
    assert (step.load_s, step.tier) == (0.5, "ram")


def test_who_waited_for_the_load_of_another_teaches_nothing_about_loads() -> None:
    s = Scene()
    s.up(0, caps=HINTS_ONLY)
    s.come("1", A)
    s.end("1", 0, 0.5, None)
    assert (s.costs.load_s(A, "ram"), s.costs.load_s(A)) == (1.0, 10.0)
    assert s.scheduler.ended.after(0, most=1)[0].load_s == 10.0


def test_a_load_job_teaches_about_its_tier_and_the_receipt_tells_it() -> None:
    s = Scene()
    s.up(0, ram="A")
    load = only_load(s.come("1", A))
    s.come("2", A)
    assert load.source == "ram"
    s.now = 0.5
    dispatch = only_dispatch(s.loaded(0, A, 0.5, "ram"))
    assert (dispatch.cache, dispatch.load_s) == ("ram", 0.5)
    assert (s.costs.load_s(A, "ram"), s.costs.load_s(A)) == (0.5, 10.0)
    explained = s.scheduler.decisions.explain(RequestId("1"))
    assert explained is not None
    assert [story.tier for story in explained.loads] == ["ram"]
    assert only_dispatch(s.end("1", 0)).cache == "join"


def test_a_load_beside_its_base_teaches_about_that_whatever_its_bytes_came_from() -> None:
    s = Scene()
    s.up(0, "base", caps=JOINED)
    assert only_load(s.come("1", UPON)).source == "base"
    s.loaded(0, UPON, 0.2)
    assert (s.costs.load_s(UPON, "base"), s.costs.load_s(UPON)) == (0.2, 10.0)


def test_a_load_that_failed_tells_no_tier() -> None:
    s = Scene()
    s.up(0)
    s.come("1", A)
    s.feed(LoadEnded(RunnerId(0), E1, A, ok=False, load_s=0.0))
    explained = s.scheduler.decisions.explain(RequestId("1"))
    assert explained is not None
    assert [story.tier for story in explained.loads] == [None]


# --- what a runner tells ---------------------------------------------------------------------------


def test_the_larger_of_two_sizes_counts_and_only_what_is_not_known_is_news() -> None:
    s = Scene()
    s.up(0), s.up(1)
    state = s.scheduler.state
    s.tell(0, ram="A", sizes={A: 7, B: 8})
    s.tell(1, sizes={A: 5})
    assert (s.costs.size_bytes(A), s.costs.size_bytes(B)) == (7, 8)
    assert not state.is_news(s.runner(0), Stock(frozenset({A}), {A: 7, B: 8}))
    assert state.is_news(s.runner(0), Stock(frozenset({A, B}), {}))
    assert state.is_news(s.runner(0), Stock(frozenset({A}), {A: 9}))


def test_hints_that_come_without_a_stock_leave_what_is_known() -> None:
    s = Scene()
    s.up(0, ram="A")
    s.feed(HintsChanged(RunnerId(0), E1, frozenset({B})))
    assert s.runner(0).source(A) == "ram"
    s.feed(RunnerUp(RunnerId(0), E1, 1, (), frozenset({B}), OVERLAPS))
    assert s.runner(0).source(A) == "ram"


def test_a_load_that_a_runner_still_has_under_way_keeps_its_source() -> None:
    s = Scene()
    s.up(0, ram="A")
    s.come("1", A)
    for loading, source in ((A,), "ram"), ((), "disk"):
        s.feed(RunnerUp(RunnerId(0), E1, 1, (), frozenset(), OVERLAPS, tuple(loading)))
        assert s.runner(0).loads_from(A) == source if loading else True


# --- auto ------------------------------------------------------------------------------------------


def test_a_model_is_loaded_where_host_memory_has_it() -> None:
    for having in (0, 1, 2):
        s = Scene()
        for runner in range(3):
            s.up(runner, ram="A" if runner == having else "")
        load = only_load(s.come("1", A))
        assert (load.runner, load.source) == (having, "ram")


def test_a_load_from_disk_now_goes_before_one_from_ram_behind_long_work() -> None:
    s = Scene()
    s.up(0, "B", ram="A"), s.up(1)
    for n in range(20):
        s.come(f"b{n}", B)
    assert only_load(s.come("1", A)).runner == 1, "40 s of work wait on the other"


def test_what_stays_in_ram_is_evicted_before_what_does_not() -> None:
    for kept in (A, B):
        s = Scene()
        for n in range(6):
            s.now += 1.0
            s.scheduler.state.demand.arrived((A, B)[n % 2], "c", now=s.now)
        s.up(0, "A B", ram=B if kept == A else A)
        assert only_load(s.come("1", C)).evict == ({A: B, B: A}[kept],)


def test_why_a_runner_was_chosen_tells_where_each_would_have_loaded_from() -> None:
    s = Scene()
    s.up(0), s.up(1, ram="A")
    s.come("1", A)
    explained = s.scheduler.decisions.explain(RequestId("1"))
    assert explained is not None
    [story] = explained.loads
    costs = {c.runner: (c.source, c.cost) for c in story.candidates}
    assert costs == {0: ("disk", pytest.approx(9.0)), 1: ("ram", 0.0)}


def test_a_copy_is_worth_less_once_it_would_come_back_from_ram() -> None:
    s = Scene()
    auto = s.scheduler.policy
    assert isinstance(auto, Auto)
    s.up(0, "A", caps=APART), s.up(1, "B", caps=APART)
    for n in range(4):
        s.now += 1.0
        s.come(f"a{n}", A)
    look = auto._carried
    assert look is not None
    before = look.worth.further_copy(A)
    s.tell(1, ram="A")
    assert auto._carried is look, "it was carried over"
    assert look.worth.further_copy(A) == pytest.approx(before / 10)


def test_a_cap_on_the_number_of_models_holds_where_bytes_would_do() -> None:
    s = Scene()
    s.up(0, "B", caps=Caps("card", loads=True, models_max=2, vram_bytes=100 * GiB))
    assert only_load(s.come("1", A)).evict == ()
    s.loaded(0, A, 1.0)
    s.end("1", 0)
    assert only_load(s.come("2", C)).evict in ((A,), (B,))


def test_a_model_that_no_card_holds_whole_takes_a_card_for_itself() -> None:
    s = Scene()
    caps = Caps("card", loads=True, vram_bytes=10 * GiB, run_bytes=40 * GiB)
    s.costs.declare(A, 30 * GiB)
    for hint in (B, C):
        s.costs.declare(hint, 4 * GiB)
    s.up(0, "B C", caps=caps)
    assert set(only_load(s.come("1", A)).evict) == {B, C}
    s.loaded(0, A, 1.0)
    s.come("2", B)
    assert only_load(s.end("1", 0)).evict == (A,)


def test_a_model_that_one_card_holds_whole_is_not_squeezed_into_a_smaller_one() -> None:
    s = Scene()
    s.costs.declare(A, 30 * GiB)
    s.up(0, caps=Caps("small", loads=True, vram_bytes=10 * GiB, run_bytes=40 * GiB))
    s.up(1, caps=Caps("large", loads=True, vram_bytes=40 * GiB, run_bytes=80 * GiB))
    assert only_load(s.come("1", A)).runner == 1


@pytest.mark.parametrize(("pinned_gib", "kind"), [(4, Load), (10, Refuse)])
def test_what_runs_in_part_runs_beside_what_is_pinned_unless_that_takes_everything(
    pinned_gib: int, kind: type[object]
) -> None:
    s = Scene()
    s.costs.declare(A, 30 * GiB)
    s.costs.declare(B, pinned_gib * GiB)
    s.costs.declare(C, GiB // 2)
    s.up(0, "B" if kind is Refuse else "B C", caps=SMALL)
    s.feed(PinsChanged(RunnerId(0), E1, frozenset({B})))
    [action] = s.come("1", A)
    assert isinstance(action, kind)
    if isinstance(action, Load):
        assert action.evict == (C,)
        s.loaded(0, A, 1.0)
        assert only_load([*s.come("2", C), *s.end("1", 0)]).evict == (A,), "it had taken all that was left"


def test_what_the_largest_card_has_no_room_for_beside_its_pins_is_squeezed_into_a_smaller_one() -> None:
    s = Scene()
    s.costs.declare(A, 30 * GiB)
    s.costs.declare(B, 20 * GiB)
    s.up(0, caps=SMALL)
    s.up(1, "B", caps=replace(SMALL, vram_bytes=40 * GiB, run_bytes=80 * GiB))
    s.feed(PinsChanged(RunnerId(1), E1, frozenset({B})))
    assert only_load(s.come("1", A)).runner == 0


def test_what_one_card_is_too_small_for_and_the_other_s_pins_leave_no_room_for_is_refused() -> None:
    s = Scene()
    s.costs.declare(A, 30 * GiB)
    s.costs.declare(B, 20 * GiB)
    s.up(0, caps=replace(SMALL, run_bytes=None))
    s.up(1, "B", caps=replace(SMALL, vram_bytes=40 * GiB, run_bytes=None))
    s.feed(PinsChanged(RunnerId(1), E1, frozenset({B})))
    assert s.come("1", A) == [Refuse(RequestId("1"), "pins_leave_no_room", pinned=(B,))]
    assert [type(action) for action in s.feed(Wished(1, A))] == [TellWish]


def test_what_a_runner_holds_although_its_card_should_be_too_small_is_served_there() -> None:
    s = Scene()
    s.costs.declare(A, 30 * GiB)
    s.up(0, "A", caps=replace(SMALL, run_bytes=None))
    [action] = s.come("1", A)
    assert isinstance(action, Dispatch)


def test_a_wish_without_a_runner_goes_where_host_memory_has_it() -> None:
    for having in (0, 1):
        s = Scene()
        for runner in range(2):
            s.up(runner, "B" if runner == having else "", ram="A" if runner == having else "")
        load, _ = s.feed(Wished(1, A))
        assert isinstance(load, Load)
        assert load.runner == having


def test_what_is_larger_than_a_card_and_all_host_memory_is_refused() -> None:
    s = Scene()
    s.up(0, caps=Caps("card", loads=True, vram_bytes=10 * GiB, run_bytes=40 * GiB))
    runner = s.runner(0)
    assert runner.fits(A, 40 * GiB)
    assert not runner.fits(A, 40 * GiB + 1)
    runner.caps = Caps("card", loads=True, vram_bytes=10 * GiB)
    assert not runner.fits(A, 10 * GiB + 1), "it has not told of a way to run what does not fit its card"


# --- bases in auto ---------------------------------------------------------------------------------


def test_what_is_laid_upon_a_base_goes_where_that_is() -> None:
    for having in (0, 1, 2):
        s = Scene()
        for runner in range(3):
            s.up(runner, "base" if runner == having else "", caps=JOINED)
        load = only_load(s.come("1", UPON))
        assert (load.runner, load.source, load.evict) == (having, "base", ())


def test_the_base_is_not_evicted_for_what_is_laid_upon_it() -> None:
    s = Scene()
    for _ in range(6):
        s.now += 1.0
        s.scheduler.state.demand.arrived(A, "c", now=s.now)
    s.up(0, "base A", caps=JOINED)
    assert only_load(s.come("1", UPON)).evict == (A,), "although nobody has asked for the base itself"


def test_who_wants_what_is_laid_upon_a_base_wants_the_base() -> None:
    for asked, evicted in ((UPON, A), (D, BASE)):
        s = Scene()
        for n in range(8):
            s.now += 1.0
            s.scheduler.state.demand.arrived(A if n % 4 == 0 else asked, "c", now=s.now)
        s.up(0, "base A", caps=JOINED)
        assert only_load(s.come("1", C)).evict == (evicted,)


def test_a_model_beside_its_base_takes_what_it_adds_to_it() -> None:
    s = Scene()
    s.costs.declare(BASE, 7 * GiB)
    s.costs.declare(UPON, 8 * GiB)
    s.up(0, "base", caps=Caps("card", loads=True, vram_bytes=9 * GiB, joint="+"))
    assert only_load(s.come("1", UPON)).evict == ()
    s.loaded(0, UPON, 0.2)
    s.end("1", 0)
    assert only_load(s.come("2", OTHER)).evict in ((), (UPON,)), "one of unknown size is tried"


def test_a_model_waits_for_a_busy_runner_that_holds_its_base_but_not_for_long() -> None:
    s = Scene()
    s.up(0, "base", caps=JOINED), s.up(1, caps=JOINED)
    s.come("1", BASE)
    assert s.come("2", UPON) == [], "the base is free in 2 s, and a load from disk takes 10 s"
    load = only_load(s.end("1", 0))
    assert (load.runner, load.hint, load.source) == (0, UPON, "base")


def test_nobody_waits_for_a_base_for_longer_than_it_can_save() -> None:
    s = Scene()
    s.up(0, "base", caps=JOINED), s.up(1, caps=JOINED)
    s.come("1", BASE)
    assert s.come("2", UPON) == []
    s.now = 9.4
    assert s.feed(Tick()) == []
    s.now = 9.6
    load = only_load(s.feed(Tick()))
    assert (load.runner, load.source) == (1, "disk")


def test_nobody_waits_for_a_base_that_is_busy_for_long() -> None:
    s = Scene()
    for _ in range(200):
        s.costs.executed(BASE, "", 60.0)
    s.up(0, "base", caps=JOINED), s.up(1, caps=JOINED)
    s.come("1", BASE)
    assert only_load(s.come("2", UPON)).runner == 1


def test_what_comes_or_goes_may_be_the_base_of_what_waits() -> None:
    s = Scene()
    s.up(0, "A", caps=JOINED)
    s.come("1", A)
    s.come("2", UPON)
    auto = s.scheduler.policy
    assert isinstance(auto, Auto)
    assert auto._carried is not None
    assert auto._carried.queues.nearest(UPON) == "disk"
    s.feed(HintsChanged(RunnerId(0), E1, frozenset({A, BASE})))
    assert auto._carried.queues.nearest(UPON) == "base"


# --- affinity --------------------------------------------------------------------------------------


def affinity() -> Scene:
    return Scene(Affinity(hold_s=10.0, bypass_max_s=30.0))


def test_affinity_goes_cold_where_the_load_is_cheapest() -> None:
    for having in (0, 1):
        s = affinity()
        for runner in range(2):
            # The one that gives up more is the one that has it.
            s.up(
                runner, "B" if runner == having else "", ram="A" if runner == having else "", caps=HINTS_ONLY
            )
        assert only_dispatch(s.come("1", A)).runner == having


def test_affinity_prefers_who_holds_the_base() -> None:
    s = affinity()
    s.up(0, "", caps=Caps("card", joint="+")), s.up(1, "base", caps=Caps("card", joint="+"))
    assert only_dispatch(s.come("1", UPON)).runner == 1


def test_affinity_holds_no_longer_than_a_load_from_ram_takes() -> None:
    s = affinity()
    s.up(0, "A", caps=HINTS_ONLY), s.up(1, ram="A", caps=HINTS_ONLY)
    s.come("1", A)
    assert s.come("2", A) == []
    s.now = 0.9
    assert s.feed(Tick()) == []
    s.now = 1.0
    assert only_dispatch(s.feed(Tick())).runner == 1


def test_affinity_holds_as_long_as_it_may_for_what_would_come_from_disk() -> None:
    s = affinity()
    s.up(0, "A", caps=HINTS_ONLY), s.up(1, caps=HINTS_ONLY)
    s.come("1", A)
    s.come("2", A)
    s.now = 9.9
    assert s.feed(Tick()) == []
    s.now = 10.0
    assert only_dispatch(s.feed(Tick())).runner == 1


def test_what_a_load_under_way_still_takes_depends_on_where_it_comes_from() -> None:
    s = Scene()
    s.up(0, ram="A")
    s.come("1", A)
    s.now = 0.4
    assert "0.6 s left" in why(s.scheduler.state, s.scheduler.policy, A, now=s.now).conclusion
    assert "0.6 s left" in brief(s.scheduler.state, A, now=s.now)


# --- asking ------------------------------------------------------------------------------------------


def test_asking_why_tells_where_each_runner_would_load_from() -> None:
    s = Scene()
    s.up(0, ram="A"), s.up(1, "A", ram="A", caps=APART)
    auto = s.scheduler.policy
    assert isinstance(auto, Weighs)
    s.come("x", A)
    s.come("1", A)
    candidates = auto.weigh(s.scheduler.state, A, now=s.now)
    assert [c.source for c in candidates] == ["ram", None]
    told = why(s.scheduler.state, s.scheduler.policy, A, now=s.now)
    assert (told.source, told.load_s) == ("ram", 1.0)
    assert why(s.scheduler.state, s.scheduler.policy, D, now=s.now).source == "disk"
    assert look_at(s.scheduler.state, Auto().knobs, now=s.now).queues.load_s(A) == 1.0
