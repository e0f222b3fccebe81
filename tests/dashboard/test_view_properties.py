"""Any fleet renders at any size: no exception, no control character, no line too wide, exactly the height."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from falctl.core.types import RUNNER_STATES
from falctl.dashboard.cells import Pen, latency, rate, span
from falctl.dashboard.snapshot import (
    CardFacts,
    EventFacts,
    ExecutingFacts,
    FleetFacts,
    FleetSnapshot,
    ModelFacts,
    QueuedFacts,
    RouterFacts,
    RunnerFacts,
)
from tests.dashboard.reading import printed

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60) | st.sampled_from(
    ["[red]x", "\x1b[2J", "\x9b1m", "\u202e\u200d", "模型" * 30, "x" * 700, "", " ", "\ud800"]
)
COUNTS = st.integers(0, 2**63)
SMALL = st.integers(0, 8)
SECONDS = st.floats(0, 1e18)
FLAGS = st.booleans()


def some(values: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=most).map(tuple)


def facts(of: type[Any], /, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(of, **fields)


FLEETS = facts(
    FleetFacts, version=ANY_TEXT, pid=COUNTS, url=ANY_TEXT, app=ANY_TEXT, policy=ANY_TEXT, uptime_s=SECONDS
)
ROUTERS = facts(
    RouterFacts,
    pid=COUNTS,
    epoch=COUNTS,
    stale=FLAGS,
    beat_age_s=SECONDS,
    uptime_s=SECONDS,
    draining=FLAGS,
    served=COUNTS,
    hits=COUNTS,
    misses=COUNTS,
    hit_rate=st.none() | st.floats(0, 1),
    refused=COUNTS,
    queued=COUNTS,
    queued_bytes=COUNTS,
    in_flight=some(COUNTS),
    rate_rps=SECONDS,
    p50_s=SECONDS,
    p95_s=SECONDS,
    webhooks_failing=COUNTS,
)
CARDS = facts(
    CardFacts,
    card=SMALL,
    kind=st.sampled_from(["cuda", "cpu"]),
    gpu_index=COUNTS,
    gpu_uuid=ANY_TEXT,
    name=ANY_TEXT,
    state=st.sampled_from(["ok", "lost", "unknown"]),
    total_bytes=COUNTS,
    used_bytes=COUNTS,
    util_pct=st.none() | st.integers(-5, 10_000),
    temp_c=st.none() | st.integers(-300, 10_000),
    power_w=st.none() | SECONDS,
    power_limit_w=st.none() | SECONDS,
    stale=FLAGS,
    age_s=SECONDS,
)
JOBS = facts(
    ExecutingFacts,
    request=ANY_TEXT,
    hint=st.none() | ANY_TEXT,
    step=COUNTS,
    steps=COUNTS,
    elapsed_s=SECONDS,
)
MODELS = facts(
    ModelFacts,
    name=ANY_TEXT,
    state=st.sampled_from(["loading", "ready"]),
    load_s=SECONDS,
    idle_s=SECONDS,
    tier=st.sampled_from(["vram", "ram", "disk"]),
    size_bytes=COUNTS,
    vram_bytes=COUNTS,
    ram_bytes=COUNTS,
    fraction=st.none() | st.floats(0, 1),
    pinned=FLAGS,
    leaves_in_s=st.none() | SECONDS,
)
RUNNERS = facts(
    RunnerFacts,
    runner=st.integers(0, 999),
    state=st.sampled_from([*RUNNER_STATES, "unknown"]),
    reason=ANY_TEXT,
    pid=COUNTS,
    epoch=COUNTS,
    restarts=st.integers(0, 9999),
    since_s=SECONDS,
    restart_in_s=st.none() | SECONDS,
    cards=some(SMALL),
    stale=FLAGS,
    beat_age_s=st.none() | SECONDS,
    slots=COUNTS,
    hints=st.none() | some(ANY_TEXT),
    hints_dropped=COUNTS,
    executing=some(JOBS),
    models=some(MODELS),
    served=COUNTS,
    loads=COUNTS,
)
QUEUED = facts(
    QueuedFacts, request=ANY_TEXT, hint=st.none() | ANY_TEXT, client=ANY_TEXT, age_s=SECONDS, why=ANY_TEXT
)
EVENTS = facts(EventFacts, age_s=SECONDS, text=ANY_TEXT)
SNAPSHOTS = facts(
    FleetSnapshot,
    at=SECONDS,
    fleet=st.none() | FLEETS,
    router=st.none() | ROUTERS,
    cards=st.lists(CARDS, max_size=4, unique_by=lambda card: card.card).map(tuple),
    runners=some(RUNNERS),
    queue=some(QUEUED),
    events=some(EVENTS),
)

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@settings(max_examples=150, deadline=None)
@given(
    snapshot=SNAPSHOTS,
    width=st.integers(40, 220),
    height=st.none() | st.integers(1, 60),
    ascii_only=FLAGS,
    colours=FLAGS,
)
def test_any_snapshot_renders_at_any_size(
    snapshot: FleetSnapshot, width: int, height: int | None, ascii_only: bool, colours: bool
) -> None:
    sent = printed(snapshot, width=width, height=height, ascii_only=ascii_only, colours=colours)
    text = COLOUR.sub("", sent)
    drawn = text.split("\n")[:-1]
    assert all(line.isprintable() for line in drawn)
    assert max(cell_len(line) for line in drawn) <= width
    if height is None:
        assert all(re.search(rf"\brunner {runner.runner}\b", text) for runner in snapshot.runners)
    assert height is None or len(drawn) == height
    assert not ascii_only or text.isascii()
    text.encode()


@settings(max_examples=300, deadline=None)
@given(text=ANY_TEXT, cells=st.integers(0, 80), ascii_only=FLAGS)
def test_a_safe_name_fits_and_is_printable(text: str, cells: int, ascii_only: bool) -> None:
    shown = Pen(ascii_only=ascii_only).safe(text, cells=cells)
    assert cell_len(shown) <= cells
    assert shown.isprintable()
    shown.encode("ascii" if ascii_only else "utf-8")


@pytest.mark.parametrize("char", ["\u0336", "\u1160", "\u200d", "\u202e", "\x1b", "\x9b", "\ud800"])
def test_a_character_that_would_not_take_a_cell_of_its_own_is_a_question_mark(char: str) -> None:
    assert Pen().safe(f"a{char}{char}b", cells=9) == "a??b"


def test_a_letter_with_its_accent_is_one_character() -> None:
    assert Pen().safe("cafe\u0301", cells=9) == "caf\u00e9"


@settings(deadline=None)
@given(share=st.floats(0, 1), cells=st.integers(2, 80))
def test_a_bar_shows_something_above_zero_and_is_full_only_when_all_is_used(share: float, cells: int) -> None:
    bar = Pen(ascii_only=True).bar(share, cells=cells, style="")
    full = bar.plain.count("#")
    assert bar.cell_len == cells
    assert (full > 0) == (share > 0)
    assert (full == cells) == (share == 1)


def test_lengths_of_time_are_said_as_people_say_them() -> None:
    said = {0: "0.0 s", 9.94: "9.9 s", 10: "10 s", 59.9: "59 s", 60: "1m 00s", 754: "12m 34s", 3600: "1h 00m",
            8054: "2h 14m", 86400: "1d 00h", 371_000: "4d 07h"}  # fmt: skip
    assert {seconds: span(seconds) for seconds in said} == said


def test_latencies_and_rates_keep_the_digits_that_matter() -> None:
    said = {0: "-", 0.0042: "4.2 ms", 0.038: "38 ms", 0.9991: "999 ms", 0.9999: "1.00 s", 1.24: "1.24 s",
            12.34: "12.3 s", 75: "1m 15s"}  # fmt: skip
    assert {seconds: latency(seconds) for seconds in said} == said
    assert [rate(value) for value in (0, 3.24, 99.9, 120.4, 6400)] == ["0.0", "3.2", "99.9", "120", "6,400"]
