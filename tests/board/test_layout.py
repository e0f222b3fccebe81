from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.board import layout as at
from falctl.board.layout import Layout, layout_of

LAYOUTS = st.builds(Layout, runners=st.integers(0, 70), gpus=st.integers(0, 70))


@given(LAYOUTS)
def test_regions_follow_the_words_and_each_other_without_overlap(layout: Layout) -> None:
    regions = layout.regions()
    assert layout.sequence_bytes.stop <= regions[0].start - at.HEAD_BYTES
    for one, next_one in pairwise(regions):
        assert one.start + one.capacity_bytes == next_one.start - at.HEAD_BYTES
    assert regions[-1].start + regions[-1].capacity_bytes == layout.total_bytes


@given(LAYOUTS)
def test_no_two_regions_share_a_cache_line(layout: Layout) -> None:
    for region in layout.regions():
        assert (region.start - at.HEAD_BYTES) % at.LINE_BYTES == 0
        assert region.length_word * at.WORD_BYTES == region.start - at.HEAD_BYTES
        assert region.checksum_word == region.length_word + 1


@given(LAYOUTS)
def test_sequence_words_are_one_slice_in_the_order_of_the_regions(layout: Layout) -> None:
    words = [region.word * at.WORD_BYTES for region in layout.regions()]
    taken = layout.sequence_bytes
    assert words == list(range(taken.start, taken.stop, at.WORD_BYTES))


@given(LAYOUTS)
def test_every_row_has_a_region_of_its_own(layout: Layout) -> None:
    numbers = [at.FLEET, at.ROUTER, at.MEMORY]
    numbers += [layout.runner(i) for i in range(layout.runners)]
    numbers += [layout.life(i) for i in range(layout.runners)]
    numbers += [layout.gpu(i) for i in range(layout.gpus)]
    assert numbers == [region.number for region in layout.regions()]


@pytest.mark.parametrize("outside", [-1, 2])
def test_a_runner_or_gpu_that_is_not_there_has_no_region(outside: int) -> None:
    layout = Layout(runners=2, gpus=2)
    for find in (layout.runner, layout.life, layout.gpu):
        with pytest.raises(AssertionError, match=f"no (runner|gpu) {outside}"):
            find(outside)


def test_a_region_off_its_boundary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at, "RUNNER_BYTES", at.RUNNER_BYTES + 8)
    with pytest.raises(AssertionError, match="cache line"):
        Layout(runners=2, gpus=0).regions()


def test_sizes_are_multiples_of_a_cache_line_and_hold_what_was_promised() -> None:
    for size in (at.RUNNER_BYTES, at.ROUTER_BYTES, at.SMALL_BYTES):
        assert size % at.LINE_BYTES == 0
    assert at.RUNNER_BYTES - 1000 * 64 >= 64 << 10


@given(LAYOUTS, st.integers(0, 1 << 32))
def test_a_header_tells_its_layout_and_any_other_word_tells_none(layout: Layout, schema: int) -> None:
    header = layout.header(schema)
    assert len(header) == at.HEADER_WORDS
    assert layout_of(header, schema=schema) == layout
    for i in (0, 1, 2, 5, 6, 7):
        other = (*header[:i], header[i] + 1, *header[i + 1 :])
        assert layout_of(other, schema=schema) is None
