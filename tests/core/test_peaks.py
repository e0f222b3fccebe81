"""What was learnt of drawings: never less than what was seen, kept through JSON, and nothing that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core import peaks as module
from falctl.core.activations import Drawing, decode_bytes, denoise_bytes
from falctl.core.peaks import Draws, Kind, LearntPeaks, expected_peaks

GB = 10**9
XL = "StableDiffusionXLPipeline"
SQUARE = Drawing(1024, 1024)
DRAWS = Draws(XL, SQUARE, "float16", 2, encoder_bytes=9 * GB)
KIND = DRAWS.kind()


def test_the_most_that_was_seen_is_expected_and_a_tenth_more() -> None:
    peaks = LearntPeaks()
    assert peaks.expected(KIND) is None
    assert peaks.seen(KIND, 1000)
    assert not peaks.seen(KIND, 900)
    assert not peaks.seen(KIND, 1000)
    assert peaks.expected(KIND) == 1100
    assert peaks.expected(replace(KIND, tiled=True)) is None


def test_more_is_expected_of_what_ran_out_of_memory() -> None:
    peaks = LearntPeaks()
    assert peaks.ran_out(KIND, 1000)
    first = peaks.expected(KIND)
    assert first is not None
    assert first > 1000
    assert peaks.ran_out(KIND, first)
    second = peaks.expected(KIND)
    assert second is not None
    assert second > first


def test_guided_drawings_count_twice() -> None:
    assert Draws(XL, Drawing(8, 16, images=3), "float16", 2).kind() == Kind(XL, 8, 16, 6, "float16")
    assert Draws(XL, Drawing(8, 16, guided=False), "float16", 2).kind(tiled=True).images == 1


def expected(peaks: LearntPeaks) -> Any:
    return expected_peaks(peaks, DRAWS)


def test_the_formulas_tell_until_something_was_seen() -> None:
    found = expected(LearntPeaks())
    assert found.denoise == denoise_bytes(XL, SQUARE, element_bytes=2)
    assert found.decode == decode_bytes(SQUARE, element_bytes=2)
    assert found.decode_tiled == decode_bytes(replace(SQUARE, tile=512), element_bytes=2)
    assert found.encode == 256 << 20
    assert expected_peaks(LearntPeaks(), replace(DRAWS, encoder_bytes=800)).encode == 100


def test_what_was_seen_of_whole_drawings_is_the_decoders_and_bounds_the_others() -> None:
    peaks = LearntPeaks()
    peaks.seen(KIND, 3 * GB)
    found = expected(peaks)
    assert found.decode == int(3.3 * GB)
    assert found.denoise == denoise_bytes(XL, SQUARE, element_bytes=2)
    peaks = LearntPeaks()
    peaks.seen(KIND, 1000)
    assert set(vars_of(expected(peaks))) == {1100}


def test_what_was_seen_with_tiles_is_every_phases() -> None:
    peaks = LearntPeaks()
    peaks.seen(replace(KIND, tiled=True), 9 * GB)
    found = expected(peaks)
    assert found.denoise == found.decode_tiled == found.decode == int(9.9 * GB)


def vars_of(found: Any) -> list[int]:
    return [found.encode, found.denoise, found.decode, found.decode_tiled]


def test_what_another_runner_has_seen_is_taken_over_by_the_maximum() -> None:
    mine, others = LearntPeaks(), LearntPeaks()
    other_kind = replace(KIND, width=8)
    mine.seen(KIND, 10)
    others.seen(KIND, 20)
    others.seen(other_kind, 5)
    assert mine.merge(others)
    assert not mine.merge(others)
    assert not others.merge(mine)
    assert (mine.expected(KIND), mine.expected(other_kind)) == (22, 5)


def test_the_kind_that_has_not_changed_for_the_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KINDS_MAX", 2)
    peaks = LearntPeaks()
    kinds = [replace(KIND, width=width) for width in (1, 2, 3)]
    peaks.seen(kinds[0], 1)
    peaks.seen(kinds[1], 1)
    peaks.seen(kinds[0], 2)
    peaks.seen(kinds[2], 1)
    assert len(peaks) == 2
    assert [peaks.expected(kind) is None for kind in kinds] == [False, True, False]


def test_what_was_seen_survives_json() -> None:
    peaks = LearntPeaks()
    peaks.seen(KIND, 7)
    assert LearntPeaks.restored(json.loads(json.dumps(peaks.dump()))).expected(KIND) == 7


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.integers(1, 1 << 40)), max_size=9))
def test_all_of_it_survives(drawn: list[tuple[int, bool, int]]) -> None:
    peaks = LearntPeaks()
    for width, tiled, nbytes in drawn:
        peaks.seen(replace(KIND, width=width, tiled=tiled), nbytes)
    again = LearntPeaks.restored(json.loads(json.dumps(peaks.dump())))
    assert again.dump() == peaks.dump()


ROW = [XL, 8, 8, 1, "float16", False, 5]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "an object with 'version'"),
        ({"version": 2, "peaks": []}, "of version 2, not 1"),
        ({"version": 1}, "an object with 'peaks'"),
        ({"version": 1, "peaks": [ROW[:-1]]}, "a row of 7"),
        ({"version": 1, "peaks": [[*ROW[:5], 1, 5]]}, "true or false"),
        ({"version": 1, "peaks": [[*ROW[:6], -5]]}, "a whole number"),
        ({"version": 1, "peaks": [ROW, [7, *ROW[1:]]]}, "a text"),
    ],
)
def test_what_cannot_have_been_seen_is_refused(table: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LearntPeaks.restored(table)
