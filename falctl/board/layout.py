"""
The bytes of the board, and the only place that knows them.

    header     64 B    magic | version | rows' schema | runners | gpus | bytes of a runner, router, other region
    sequence   8 B     per region: fleet, router, memory, runner[0..], life[0..], gpu[0..]; one array, padded to 64 B
    regions            in the same order, each on a 64-byte boundary: length | checksum | payload

All words are native u64 on 8-byte boundaries. Such a store does not tear; one that straddles a cache line
does (measured: 18,037 of 3.7 million reads, CPython 3.11, x86-64). The sequence words stand together so that
a reader learns with one small copy whether anything at all has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAGIC: Final = int.from_bytes(b"FALBOARD", "little")
VERSION: Final = 2

WORD_BYTES: Final = 8
LINE_BYTES: Final = 64
HEADER_WORDS: Final = 8
HEAD_BYTES: Final = 2 * WORD_BYTES
"""Length and checksum, in front of every payload."""

RUNNER_BYTES: Final = 128 << 10
"""Room for 1,000 hints of 60 characters, and as much again for what runs and what is cached."""
ROUTER_BYTES: Final = 128 << 10
SMALL_BYTES: Final = 4 << 10
"""Fleet, memory, life and gpu."""

FLEET: Final = 0
ROUTER: Final = 1
MEMORY: Final = 2
FIRST_RUNNER: Final = 3


@dataclass(frozen=True, slots=True)
class Region:
    """Where one row lies."""

    number: int
    """Also the index of its sequence word, counted from `Layout.first_word`."""
    word: int
    """Index of its sequence word, counted in words from the start of the file."""
    length_word: int
    checksum_word: int
    start: int
    """First byte of the payload."""
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A board for *runners* runners and *gpus* rows of GPUs."""

    runners: int
    gpus: int

    @property
    def first_word(self) -> int:
        """Return the index of the first sequence word, counted in words from the start of the file."""
        return HEADER_WORDS

    @property
    def sequence_bytes(self) -> slice:
        """Return where all sequence words lie, without the padding."""
        start = self.first_word * WORD_BYTES
        return slice(start, start + len(self._sizes()) * WORD_BYTES)

    @property
    def total_bytes(self) -> int:
        return self._first_region() + sum(self._sizes())

    def header(self, schema: int) -> tuple[int, ...]:
        """Return the words of the header; a file that begins with others is not such a board."""
        return (MAGIC, VERSION, schema, self.runners, self.gpus, RUNNER_BYTES, ROUTER_BYTES, SMALL_BYTES)

    def regions(self) -> tuple[Region, ...]:
        """Return every region, by number."""
        found = []
        at = self._first_region()
        for number, size in enumerate(self._sizes()):
            assert at % LINE_BYTES == 0, "regions must not share a cache line, and words must be aligned"
            found.append(
                Region(
                    number=number,
                    word=self.first_word + number,
                    length_word=at // WORD_BYTES,
                    checksum_word=at // WORD_BYTES + 1,
                    start=at + HEAD_BYTES,
                    capacity_bytes=size - HEAD_BYTES,
                )
            )
            at += size
        return tuple(found)

    def runner(self, runner: int) -> int:
        """Return the number of a runner's region."""
        assert 0 <= runner < self.runners, f"no runner {runner} on a board of {self.runners}"
        return FIRST_RUNNER + runner

    def life(self, runner: int) -> int:
        """Return the number of the region of a runner's life."""
        return self.runner(runner) + self.runners

    def gpu(self, gpu: int) -> int:
        """Return the number of a GPU's region."""
        assert 0 <= gpu < self.gpus, f"no gpu {gpu} on a board of {self.gpus}"
        return FIRST_RUNNER + 2 * self.runners + gpu

    def _sizes(self) -> list[int]:
        small = [SMALL_BYTES] * (self.runners + self.gpus)
        return [SMALL_BYTES, ROUTER_BYTES, SMALL_BYTES, *[RUNNER_BYTES] * self.runners, *small]

    def _first_region(self) -> int:
        head = (self.first_word + len(self._sizes())) * WORD_BYTES
        return -(-head // LINE_BYTES) * LINE_BYTES


def layout_of(header: tuple[int, ...], *, schema: int) -> Layout | None:
    """Return the layout that *header*, the first `HEADER_WORDS` words of a file, announces; None if not ours."""
    layout = Layout(runners=header[3], gpus=header[4])
    return layout if header == layout.header(schema) else None
