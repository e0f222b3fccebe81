"""The picture says what a person needs, at every width, and never more than fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from falctl.board.board import Board
from falctl.board.rows import EventRow, Executing, MemoryRow, ModelRow, QueuedRow, RunnerRow
from falctl.core.types import Epoch, Hint, RequestId
from falctl.dashboard.snapshot import FleetSnapshot, take
from tests.dashboard import fleets
from tests.dashboard.fleets import NOW
from tests.dashboard.reading import line_with, lines, printed

WIDTHS = (40, 60, 80, 99, 100, 120, 200)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = fleets.new_board(tmp_path, runners=5, gpus=4)
    fleets.put_busy(made)
    yield made
    made.close()


@pytest.fixture
def busy(board: Board) -> FleetSnapshot:
    return take(board, now=NOW)


@pytest.fixture
def idle(tmp_path: Path) -> FleetSnapshot:
    (tmp_path / "cpu").mkdir()
    made = fleets.new_board(tmp_path / "cpu", runners=2, gpus=2)
    fleets.put_cpu(made)
    snapshot = take(made, now=NOW)
    made.close()
    return snapshot


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_no_line_is_wider_than_the_terminal(busy: FleetSnapshot, width: int, ascii_only: bool) -> None:
    drawn = lines(busy, width=width, ascii_only=ascii_only)
    assert max(cell_len(line) for line in drawn) <= width
    assert all(line == line.rstrip() for line in drawn)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_fact_is_there_at_every_width(busy: FleetSnapshot, width: int) -> None:
    text = " ".join(" ".join(lines(busy, width=width)).split())
    for fact in (
        "falctl 0.1.0",
        "up 2h 14m",
        "http://127.0.0.1:8808",
        "policy affinity",
        "3.2 req/s",
        "p50 1.24 s",
        "p95 6.83 s",
        "hit rate 93 %",
        "queue 3",
        "in flight 2",
        "served 12,431",
        "H100 80GB",
        "91 %",
        "61.2 / 79.6 GiB",
        "runner 0 ready",
        "flux.1-dev",
        "step 14/28",
        "3.2 s",
        "● sdxl-turbo ready",
        "pinned",
        "○ sdxl-base in RAM",
        "◐ qwen-image loading 43 %",
        "host memory 41.0 GiB of 64.0 GiB",
        "● lora:watercolour warm",
        "runner 4 backoff",
        "restarts in 3.0 s",
        "killed by signal 9",
        "3 waiting",
        "any runner",
        "runner 0 busy, 3.1 s left",
        "runner 1 loads qwen-image",
    ):
        assert fact in text, fact


@pytest.mark.parametrize("width", [100, 120, 200])
def test_a_wide_terminal_shows_temperature_power_and_restarts(busy: FleetSnapshot, width: int) -> None:
    drawn = lines(busy, width=width)
    card = line_with("61.2 / 79.6 GiB", drawn)
    assert "66 °C" in card
    assert "612/700 W" in card
    head = line_with("RESTARTS", drawn)
    assert (
        line_with("runner 4  backoff", drawn).index("2", 20) == head.index("RESTARTS") + len("RESTARTS") - 1
    )


def test_the_columns_stand_under_their_heads(busy: FleetSnapshot) -> None:
    drawn = lines(busy, width=120)
    head, card = line_with("UTILISATION", drawn), line_with("61.2 / 79.6 GiB", drawn)
    assert head.index("NAME") == card.index("NVIDIA")
    assert head.index("UTILISATION") == card.index("━")
    assert head.index("TEMP") + len("TEMP") == card.index("°C") + len("°C")
    assert head.index("POWER") + len("POWER") == card.index("700 W") + len("700 W")
    assert head.index("VRAM") == card.index("━", head.index("VRAM") - 1)
    assert line_with("runner 0  ready", drawn).index("●") == head.index("VRAM")


def test_restarts_are_named_on_a_narrow_terminal_when_there_were_any(busy: FleetSnapshot) -> None:
    drawn = lines(busy, width=80)
    assert "restarts 2" in line_with("runner 4  backoff", drawn)
    assert "restarts 0" not in "\n".join(drawn)


def test_two_runners_on_one_card_stand_below_it_and_it_is_shown_once(busy: FleetSnapshot) -> None:
    drawn = lines(busy, width=120)
    card = drawn.index(line_with("78.9 / 79.6 GiB", drawn))
    assert drawn[card + 1].strip().startswith("runner 2")
    assert drawn[card + 2].strip().startswith("runner 3")


@pytest.mark.parametrize("width", [60, 120])
def test_a_runner_on_several_cards_lists_them(board: Board, width: int) -> None:
    board.put_life(0, fleets.life(0, gpus=(0, 1)))
    drawn = lines(take(board, now=NOW), width=width)
    first, second = (drawn.index(line_with(f"{used} / 79.6 GiB", drawn)) for used in ("61.2", "44.7"))
    assert second == first + 1
    assert drawn[second + 1].strip().startswith("runner 0 on 0,1  ready")
    assert any("runner 1 on 1  ready" in line for line in drawn)


@pytest.mark.parametrize("width", [60, 120])
def test_a_runner_whose_card_is_unknown_is_still_shown(board: Board, width: int) -> None:
    board.put_life(0, fleets.life(0, gpus=()))
    assert "flux.1-dev" in line_with("runner 0  ready", lines(take(board, now=NOW), width=width))


def test_a_lost_card_says_so(board: Board) -> None:
    row = fleets.h100(1, util_pct=5, temp_c=40, power_w=90, used_gib=3, at=NOW)
    board.put_gpu(1, replace(row, state="lost"))
    for width in (60, 120):
        drawn = lines(take(board, now=NOW), width=width)
        assert "the card does not answer" in line_with("LOST", drawn)


def test_old_figures_of_a_card_are_not_shown_as_new(board: Board) -> None:
    board.put_gpu(1, fleets.h100(1, util_pct=5, temp_c=40, power_w=90, used_gib=3, at=NOW - 12))
    assert "12 s old" in line_with("3.00 / 79.6 GiB", lines(take(board, now=NOW), width=120))
    assert "old" in line_with("3.00 / 79.6 GiB", lines(take(board, now=NOW), width=60))
    assert "supervisor has not" not in "\n".join(lines(take(board, now=NOW), width=120))


def test_a_silent_router_is_announced_and_the_runners_stay(board: Board) -> None:
    board.put_router(fleets.busy_router(beat_at=NOW - 12))
    text = " ".join(" ".join(lines(take(board, now=NOW), width=80)).split())
    assert "router has not answered for 12 s; runners below are read from shared memory" in text
    assert "step 14/28" in text


def test_a_silent_supervisor_is_announced(busy: FleetSnapshot) -> None:
    old = replace(busy, cards=tuple(replace(card, stale=True, age_s=30.0) for card in busy.cards))
    text = " ".join(lines(old, width=120))
    assert "supervisor has not sampled the cards for 30 s" in text


def test_nothing_is_announced_when_all_is_well(busy: FleetSnapshot) -> None:
    text = "\n".join(lines(busy, width=120))
    assert "has not" not in text
    assert "draining" not in text


def test_a_silent_runner_says_how_long(board: Board) -> None:
    board.put_runner(2, RunnerRow(Epoch(1), 1, (), beat_at=NOW - 75))
    assert "silent for 1m 15s" in line_with("runner 2", lines(take(board, now=NOW), width=120))


def test_draining_is_announced(board: Board) -> None:
    board.put_router(replace(fleets.busy_router(), draining=True))
    assert "draining: no new request is taken" in "\n".join(lines(take(board, now=NOW), width=120))


def test_webhooks_that_fail_are_counted_when_there_are_any(board: Board) -> None:
    board.put_router(fleets.busy_router())
    assert "webhooks" not in "\n".join(lines(take(board, now=NOW), width=120))
    board.put_router(replace(fleets.busy_router(), webhooks_failing=1200))
    assert "webhooks failing 1,200" in "\n".join(lines(take(board, now=NOW), width=120))


@pytest.mark.parametrize("width", [60, 120])
def test_a_starting_runner_shows_its_stage(board: Board, width: int) -> None:
    board.put_life(0, fleets.life(0, gpus=(0,), state="starting", reason="importing torch"))
    line = line_with("runner 0  starting", lines(take(board, now=NOW), width=width))
    assert "importing torch  1m 02s" in line


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_failed_runner_says_why(board: Board, width: int) -> None:
    reason = "setup() raised RuntimeError: CUDA error: out of memory, 5 times within 600 s"
    board.put_life(0, fleets.life(0, gpus=(0,), state="failed", reason=reason, restarts=5))
    text = " ".join(" ".join(lines(take(board, now=NOW), width=width)).split())
    assert "runner 0 failed" in text
    assert "setup() raised RuntimeError: CUDA error: out of memory" in text


def test_a_fleet_that_has_failed_is_announced(board: Board) -> None:
    for runner in range(5):
        board.put_life(runner, fleets.life(runner, gpus=(0,), state="failed", reason="no"))
    assert "every runner has failed" in "\n".join(lines(take(board, now=NOW), width=120))


def test_cpu_runners_show_memory_and_nothing_that_a_cpu_lacks(idle: FleetSnapshot) -> None:
    for width in (60, 120):
        drawn = lines(idle, width=width)
        text = "\n".join(drawn)
        assert "0.62 / 16.0 GiB" in text
        assert "MEMORY" in text
        assert "CPU" in text
        for absent in ("GPU", "VRAM", "TEMP", "POWER"):
            assert absent not in text


def test_before_the_first_request_it_says_so(idle: FleetSnapshot) -> None:
    text = "\n".join(lines(idle, width=120))
    for said in ("no request yet", "no model yet", "QUEUE  empty", "EVENTS  none yet"):
        assert said in text


def test_an_app_without_hints_is_named_as_such(board: Board) -> None:
    board.put_runner(2, RunnerRow(Epoch(1), 1, None, beat_at=NOW))
    assert "gives no hints" in line_with("runner 2", lines(take(board, now=NOW), width=120))


def test_before_anything_is_written_it_says_that_falctl_starts(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    made = fleets.new_board(tmp_path / "new", runners=1, gpus=1)
    text = "\n".join(lines(take(made, now=NOW), width=80))
    made.close()
    assert "falctl   is starting" in text
    assert "the router has not reported yet" in text


def test_several_requests_at_once_are_listed_and_the_rest_counted(board: Board) -> None:
    jobs = tuple(Executing(RequestId(f"r{n}"), Hint(f"m{n}"), NOW - n, n, 10) for n in range(8))
    board.put_runner(2, RunnerRow(Epoch(1), 8, (), executing=jobs, beat_at=NOW))
    text = "\n".join(lines(take(board, now=NOW), width=120))
    assert "▸ m2" in text
    assert "▸ m3" not in text
    assert "+5 more" in text


def test_a_job_without_steps_or_hint_is_still_named(board: Board) -> None:
    board.put_runner(
        2, RunnerRow(Epoch(1), 1, (), executing=(Executing(RequestId("abc"), None, NOW - 90),), beat_at=NOW)
    )
    assert "request abc  running  1m 30s" in line_with("runner 2", lines(take(board, now=NOW), width=120))


def test_why_it_waits_stands_below_the_first_request_of_each_model(board: Board) -> None:
    models = ("a", "b", "a", "b", "c")
    queue = tuple(
        QueuedRow(RequestId(f"r{n}"), Hint(m), "c", NOW - 10 + n, f"told of {m}" if m != "c" else "")
        for n, m in enumerate(models)
    )
    board.put_router(replace(fleets.busy_router(), queue=queue, queued=5))
    drawn = lines(take(board, now=NOW), width=80)
    begin = drawn.index(line_with("5 waiting", drawn))
    assert [line.split()[-1] for line in drawn[begin + 1 : begin + 8]] == ["c", "a", "c", "b", "c", "c", "c"]
    assert [line.strip() for line in drawn if "told of" in line] == ["told of a", "told of b"]


@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("height", [18, 24, 29, 34, 60])
def test_reasons_take_a_quarter_of_a_long_queue_at_most(board: Board, width: int, height: int) -> None:
    queue = tuple(QueuedRow(RequestId(f"r{n}"), Hint(f"m{n}"), "c", NOW - n, f"told {n}") for n in range(80))
    board.put_router(replace(fleets.busy_router(), queue=queue, queued=80))
    drawn = lines(take(board, now=NOW), width=width, height=height)
    rows = [n for n, line in enumerate(drawn) if re.search(r"\d s  m\d|\ds  m\d", line)]
    told = [n for n, line in enumerate(drawn) if " told " in line]
    assert 3 * len(told) <= len(rows) + 1
    assert height < 60 or told, "there is room for some"
    assert all(n - 1 in rows for n in told), "each below its request"


def test_the_queue_is_cut_and_the_rest_counted(board: Board) -> None:
    queue = tuple(QueuedRow(RequestId(f"r{n}"), Hint(f"m{n}"), "c", NOW - n) for n in range(256))
    board.put_router(replace(fleets.busy_router(), queue=queue, queued=900))
    drawn = lines(take(board, now=NOW), width=120)
    text = "\n".join(drawn)
    assert "900 waiting" in text
    shown = [n for n in range(256) if f" m{n} " in text]
    assert shown == list(range(256 - len(shown), 256))
    assert f"+{900 - len(shown)} more" in text


def test_the_newest_event_comes_first(busy: FleetSnapshot) -> None:
    text = "\n".join(lines(busy, width=80))
    assert text.index("runner 1 loads qwen-image") < text.index("runner 3 ready in 19 s")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 10, 16, 24, 30, 40, 60])
def test_it_fills_exactly_the_height_and_says_how_to_leave(
    busy: FleetSnapshot, width: int, height: int
) -> None:
    drawn = lines(busy, width=width, height=height)
    assert len(drawn) == height
    assert drawn[-1].endswith("q or Ctrl-C to leave")


def test_on_80_by_24_every_runner_of_four_cards_is_there(busy: FleetSnapshot) -> None:
    text = "\n".join(lines(busy, width=80, height=24))
    assert all(f"runner {n}" in text for n in range(5))


@pytest.mark.parametrize("height", range(20, 40))
@pytest.mark.parametrize("width", [80, 120])
def test_room_below_the_runners_is_used(busy: FleetSnapshot, width: int, height: int) -> None:
    """There is no empty line to spare while a request or an event is not shown."""
    drawn = lines(busy, width=width, height=height)
    text = "\n".join(drawn)
    if drawn[-2] == "" == drawn[-3]:
        assert all(request.request[:12] in text for request in busy.queue)
        assert "runner 1 ready in 21 s" in text


def test_runners_that_do_not_fit_are_counted(busy: FleetSnapshot) -> None:
    drawn = lines(busy, width=120, height=9)
    shown = [n for n in range(5) if any(f"runner {n}  " in line for line in drawn)]
    assert 0 < len(shown) < 5
    assert f"+{5 - len(shown)} more runners" in "\n".join(drawn)


def test_eight_cards_fit_a_terminal_of_40_lines(tmp_path: Path) -> None:
    (tmp_path / "eight").mkdir()
    made = fleets.new_board(tmp_path / "eight", runners=8, gpus=8)
    for n in range(8):
        made.put_gpu(n, fleets.h100(n, util_pct=n, temp_c=40, power_w=90, used_gib=3, at=NOW))
        made.put_life(n, fleets.life(n, gpus=(n,)))
        models = tuple(ModelRow(f"model-{n}-{m}", "ready", NOW) for m in range(3))
        made.put_runner(n, RunnerRow(Epoch(1), 1, (), models=models, beat_at=NOW))
    made.put_router(fleets.busy_router())
    text = "\n".join(lines(take(made, now=NOW), width=120, height=40))
    made.close()
    assert all(f"model-{n}-{m} ready" in text for n in range(8) for m in range(3))
    assert "EVENTS" in text
    assert "8f14e45fceea" in text


def test_each_model_says_how_large_it_is_and_what_is_only_on_the_disk_is_left_out(
    busy: FleetSnapshot,
) -> None:
    text = "\n".join(lines(busy, width=200))
    assert "● flux.1-dev ready 22.2 GiB" in text
    assert "● sdxl-turbo ready 6.50 GiB pinned" in text
    assert "○ sdxl-base in RAM 6.50 GiB" in text
    assert "old" not in text


def test_a_small_model_is_told_in_mib(board: Board) -> None:
    rows = (replace(fleets.sized("tiny", 0.011), tier="vram"), replace(fleets.sized("mid", 0.1)))
    board.put_runner(2, RunnerRow(Epoch(1), 1, (), models=rows, beat_at=NOW))
    text = "\n".join(lines(take(board, now=NOW), width=120))
    assert "tiny ready 11 MiB" in text
    assert "mid ready 0.10 GiB" in text


def test_sizes_give_way_where_lines_are_short(tmp_path: Path) -> None:
    (tmp_path / "eight").mkdir()
    made = fleets.new_board(tmp_path / "eight", runners=8, gpus=8)
    for n in range(8):
        made.put_gpu(n, fleets.h100(n, util_pct=n, temp_c=40, power_w=90, used_gib=3, at=NOW))
        made.put_life(n, fleets.life(n, gpus=(n,)))
        held = [replace(fleets.sized(f"model-{n}-{m}", 6.5), pinned=m == 0) for m in range(3)]
        held.append(replace(fleets.sized(f"model-{n}-3", 6.5), tier="ram"))
        made.put_runner(n, RunnerRow(Epoch(1), 1, (), models=tuple(held), beat_at=NOW))
    made.put_router(fleets.busy_router())
    snapshot = take(made, now=NOW)
    made.close()
    tall, short = ("\n".join(lines(snapshot, width=80, height=height)) for height in (50, 38))
    for n in range(8):
        assert f"● model-{n}-0 ready 6.50 GiB pinned" in tall
        assert f"○ model-{n}-3 in RAM 6.50 GiB" in tall
        assert f"● model-{n}-0 ready pinned" in short
    assert short.count("   +2 more") >= 8
    assert "6.50 GiB" not in short
    assert "EVENTS" in short


def test_host_memory_is_left_out_while_nothing_is_held(board: Board) -> None:
    board.put_memory(MemoryRow(32 << 30))
    assert "host memory" not in "\n".join(lines(take(board, now=NOW), width=120))


def test_many_models_wrap_and_the_rest_is_counted(board: Board) -> None:
    models = tuple(ModelRow(f"model-{n:02}", "ready", NOW) for n in range(60))
    board.put_runner(2, RunnerRow(Epoch(1), 1, (), models=models, beat_at=NOW))
    for width in (60, 120):
        text = "\n".join(lines(take(board, now=NOW), width=width))
        shown = [n for n in range(60) if f"model-{n:02} ready" in text]
        assert shown == list(range(len(shown)))
        assert 5 < len(shown) < 60
        assert f"+{60 - len(shown)} more" in text


HOSTILE = (
    "[red]x[/red]",
    "\x1b[2Jgone\x1b]0;title\x07",
    "a\rb\nc\td",
    "\x9b31m",
    "\u202eright\u200d",
    "e\u0301\u0301",
    "\ud800",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_cannot_move_the_cursor_or_change_a_colour(board: Board, name: str) -> None:
    jobs = (Executing(RequestId(name), Hint(name), NOW, 1, 2),)
    board.put_runner(
        2,
        RunnerRow(Epoch(1), 1, fleets.hints(name), executing=jobs, models=(fleets.model(name),), beat_at=NOW),
    )
    queue = (QueuedRow(RequestId(name), Hint(name), name, NOW),)
    board.put_router(replace(fleets.busy_router(), queue=queue, events=(EventRow(NOW, name),)))
    board.put_life(3, fleets.life(3, gpus=(2,), state="failed", reason=name))
    plain = replace(take(board, now=NOW), fleet=None)
    for width in (60, 120):
        text = printed(plain, width=width)
        assert all(char == "\n" or char.isprintable() for char in text), repr(text)
        sent = printed(plain, width=width, colours=True)
        assert "\x1b[2J" not in sent
        assert "\x1b]" not in sent
    if name.startswith("[red]"):
        assert "[red]x[/red] ready" in text


def test_a_very_long_name_is_cut_with_an_ellipsis(board: Board) -> None:
    name = "hub/" + "x" * 4000
    board.put_runner(2, RunnerRow(Epoch(1), 1, (), models=(fleets.model(name),), beat_at=NOW))
    for ascii_only, ellipsis in ((False, "…"), (True, "~")):
        line = line_with("hub/xxx", lines(take(board, now=NOW), width=120, ascii_only=ascii_only))
        assert f"x{ellipsis} ready" in line


def test_without_utf8_every_character_is_ascii(board: Board) -> None:
    board.put_runner(2, RunnerRow(Epoch(1), 1, fleets.hints("模型"), beat_at=NOW))
    snapshot = take(board, now=NOW)
    for height in (None, 40):
        text = "\n".join(lines(snapshot, width=120, height=height, ascii_only=True))
        assert text.isascii()
    assert "* ?? warm" in text
    assert "o qwen-image loading" in text


def test_colour_is_never_the_only_sign(busy: FleetSnapshot) -> None:
    """Without colours the states of runners and models can still be told apart."""
    text = printed(busy, width=120)
    assert "\x1b" not in text
    for word in ("ready", "backoff", "loading", "warm"):
        assert word in text


@pytest.mark.parametrize(("util", "colour"), [(9, "32"), (10, "33"), (74, "33"), (75, "31")])
def test_utilisation_is_coloured_by_nvitops_thresholds(board: Board, util: int, colour: str) -> None:
    board.put_gpu(0, fleets.h100(0, util_pct=util, temp_c=40, power_w=90, used_gib=0, at=NOW))
    sent = printed(take(board, now=NOW), width=120, colours=True)
    assert f"\x1b[{colour}m{util} %" in sent


@pytest.mark.parametrize(("share", "colour"), [(0.09, "32"), (0.11, "33"), (0.79, "33"), (0.81, "31")])
def test_memory_is_coloured_by_nvitops_thresholds(board: Board, share: float, colour: str) -> None:
    board.put_gpu(0, fleets.h100(0, util_pct=None, temp_c=40, power_w=90, used_gib=79.6 * share, at=NOW))
    card = line_with("40 °C", printed(take(board, now=NOW), width=120, colours=True).split("\n"))
    assert f"\x1b[{colour}m━" in card
