from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.board import codec
from falctl.board.layout import HEAD_BYTES, ROUTER_BYTES, RUNNER_BYTES, SMALL_BYTES
from falctl.board.rows import EventRow, FleetRow, GpuRow, LifeRow, MemoryRow, RouterRow, RunnerRow
from falctl.core.types import Hint
from tests.board import samples, strategies

SMALL = SMALL_BYTES - HEAD_BYTES
RUNNER = RUNNER_BYTES - HEAD_BYTES
ROUTER = ROUTER_BYTES - HEAD_BYTES
AMPLE = 1 << 30


def _round_trip(row: codec.R, *, capacity_bytes: int = AMPLE) -> codec.R:
    payload = codec.encode(row, capacity_bytes=capacity_bytes)
    assert len(payload) <= capacity_bytes
    return codec.decode(type(row), payload)


@given(strategies.FLEETS)
def test_a_fleet_row_comes_back_equal(row: FleetRow) -> None:
    assert _round_trip(row) == row


@given(strategies.ROUTERS)
def test_a_router_row_comes_back_equal(row: RouterRow) -> None:
    assert _round_trip(row) == row


@given(strategies.RUNNERS)
def test_a_runner_row_comes_back_equal(row: RunnerRow) -> None:
    assert _round_trip(row) == row


@given(strategies.LIVES)
def test_a_life_row_comes_back_equal(row: LifeRow) -> None:
    assert _round_trip(row) == row


@given(strategies.MEMORIES)
def test_a_memory_row_comes_back_equal(row: MemoryRow) -> None:
    assert _round_trip(row) == row


@given(strategies.GPUS)
def test_a_gpu_row_comes_back_equal(row: GpuRow) -> None:
    assert _round_trip(row) == row


@pytest.mark.parametrize(
    "hint", ["", "é", "\x00", '"\\', "\ud83d\ude00", "\U0001f600", "\ud800", "a,b", "\u2028"]
)
def test_a_hint_comes_back_exactly(hint: str) -> None:
    assert _round_trip(samples.runner_row(hints=(hint,))).hints == (hint,)


def test_no_hints_and_an_empty_list_of_hints_stay_different() -> None:
    assert _round_trip(samples.runner_row(hints=None)).hints is None
    assert _round_trip(samples.runner_row(hints=())).hints == ()


def test_a_thousand_hints_of_sixty_characters_fit_beside_the_rest() -> None:
    row = replace(
        samples.runner_row(hints=tuple(f"{i:060}" for i in range(1000))),
        executing=(samples.executing("x" * 60),) * 64,
        models=(samples.model("y" * 60),) * 256,
    )
    assert _round_trip(row, capacity_bytes=RUNNER) == row


@given(st.lists(strategies.ANY_TEXT, min_size=5), st.integers(50, 120), st.integers(0, 120))
def test_of_too_many_hints_the_longest_prefix_that_fits_stays_and_the_rest_is_counted(
    hints: list[str], capacity_bytes: int, dropped: int
) -> None:
    row = replace(samples.runner_row(hints=tuple(hints)), hints_dropped=dropped)
    short = _round_trip(row, capacity_bytes=capacity_bytes)
    kept = len(short.hints or ())
    assert short == replace(
        row, hints=tuple(map(Hint, hints[:kept])), hints_dropped=dropped + len(hints) - kept
    )
    if kept < len(hints):
        one_more = replace(
            short, hints=tuple(map(Hint, hints[: kept + 1])), hints_dropped=short.hints_dropped - 1
        )
        assert len(codec.encode(one_more, capacity_bytes=AMPLE)) > capacity_bytes


def test_a_hint_is_kept_whole_or_not_at_all() -> None:
    hints = tuple(f"{i}{'h' * 400}" for i in range(1000))
    short = _round_trip(samples.runner_row(hints=hints), capacity_bytes=RUNNER)
    assert short.hints
    assert short.hints == hints[: len(short.hints)]
    assert short.hints_dropped == 1000 - len(short.hints)


def test_an_endless_text_beside_the_hints_is_cut_and_costs_no_hint() -> None:
    row = replace(samples.runner_row(hints=("a", "b")), executing=(samples.executing("x" * RUNNER),))
    short = _round_trip(row, capacity_bytes=RUNNER)
    assert (short.hints, short.hints_dropped) == (("a", "b"), 0)
    assert short.executing[0].hint == "x" * 255 + "…"


def test_models_that_do_not_fit_cost_no_hint() -> None:
    hints = tuple(map(Hint, map(str, range(100))))
    row = replace(samples.runner_row(hints=hints), models=(samples.model("m" * 60),) * 2000)
    short = _round_trip(row, capacity_bytes=RUNNER)
    assert (short.hints, short.hints_dropped) == (hints, 0)
    assert 0 < len(short.models) < 2000
    one_more = replace(short, models=row.models[: len(short.models) + 1])
    assert len(codec.encode(one_more, capacity_bytes=AMPLE)) > RUNNER, "as many as fit"


def test_hints_and_models_that_both_do_not_fit_have_half_each() -> None:
    hints = tuple(Hint(f"{i:060}") for i in range(3000))
    models = (samples.model("m" * 60),) * 2000
    short = _round_trip(replace(samples.runner_row(hints=hints), models=models), capacity_bytes=RUNNER)
    only_hints = len(codec.encode(replace(short, models=()), capacity_bytes=AMPLE))
    assert 0.48 < only_hints / RUNNER < 0.52
    assert short.hints_dropped > 0


def test_models_and_running_requests_without_end_are_shortened_after_the_hints() -> None:
    row = replace(
        samples.runner_row(hints=("a",)),
        models=(samples.model("\x00" * 400),) * 1000,
        executing=(samples.executing(None),) * 7000,
    )
    short = _round_trip(row, capacity_bytes=RUNNER)
    assert (short.hints, short.hints_dropped, short.models) == ((), 1, ())
    assert 0 < len(short.executing) < 7000
    models_only = _round_trip(replace(row, executing=(), hints=None), capacity_bytes=RUNNER)
    assert (models_only.hints, models_only.hints_dropped) == (None, 0)
    assert 0 < len(models_only.models) < 1000


def test_a_queue_that_does_not_fit_keeps_its_first_and_the_events_stay() -> None:
    queue = tuple(samples.queued(i, client="\x00" * 500) for i in range(256))
    events = tuple(EventRow(at=i, text="e") for i in range(64))
    short = _round_trip(samples.router_row(queue, events), capacity_bytes=ROUTER)
    assert 0 < len(short.queue) < 256
    assert [q.request for q in short.queue] == [q.request for q in queue[: len(short.queue)]]
    assert short.events == events


def test_events_that_do_not_fit_lose_the_oldest() -> None:
    events = tuple(EventRow(at=i, text="\x00" * 256) for i in range(100))
    short = _round_trip(samples.router_row(events=events), capacity_bytes=ROUTER)
    assert 0 < len(short.events) < 100
    assert short.events == events[-len(short.events) :]


@pytest.mark.parametrize("char", ["x", "é", "\x00", "\U0001f600", "\ud800"])
def test_no_text_is_too_long_for_a_small_region(char: str) -> None:
    text = char * 100_000
    life = _round_trip(replace(samples.life_row(text), gpus=tuple(range(64))), capacity_bytes=SMALL)
    assert life.reason.startswith(char * 31)
    gpu = _round_trip(replace(samples.gpu_row(text), gpu_uuid=text), capacity_bytes=SMALL)
    assert gpu.name.startswith(char * 31)
    fleet = _round_trip(FleetRow(text, 1, text, text, text, 1.0), capacity_bytes=SMALL)
    assert fleet.url.startswith(char * 31)


def test_a_row_that_cannot_be_shortened_enough_is_a_bug_and_says_so() -> None:
    with pytest.raises(AssertionError, match="LifeRow does not fit 20 bytes"):
        codec.encode(samples.life_row(), capacity_bytes=20)
