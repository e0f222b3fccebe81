"""
The bytes of a skeleton, read from its files as they were when it was packed: into host memory, and on to a device.

What goes on to a device goes cell by cell, as each is complete, so that a load takes about as long as the slower of
reading and copying, and not as both. Whoever has read a cell copies it on: on two busy cores a model from a cold disk took
257 ms instead of 346, from the page cache 140 instead of 152 (384 MiB, medians of 7; a thread of its own for copies,
or cells of 16 MiB, took as long as reading and copying one after the other; 2-core VM, 2026-11-23).

Where host memory has no room, bytes pass through two buffers in turn: one is read into while the other is copied from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch

from falctl.host.cache.arena import Arena
from falctl.host.cache.arrival import Arrival
from falctl.host.cache.cells import Cells, Range
from falctl.host.cache.headers import DTYPE_BYTES
from falctl.host.cache.reading import CHUNK_BYTES, Placement, read_weights
from falctl.host.cache.stopping import Move

STAGING_BYTES: Final = 64 << 20
"""Of each of the buffers that bytes pass through: some dozen chunks, so that the threads that read seldom wait for the last."""

_STAGINGS: Final = 2


def read_again(
    arena: Arena,
    placements: Sequence[Placement],
    flat: torch.Tensor,
    move: Move,
    *,
    arrival: Arrival | None = None,
) -> None:
    """
    Fill *flat*, a buffer of *arena*'s length, with its weights, and *arrival*, too; attaches nothing. Blocking; any thread.

    *placements* are what `find_placements` proved. When it raises, the contents of both are undefined.

    Raises:
        ModelFilesError: a file is gone, or not what it was.
        LoadCancelledError: *move* was cancelled before all was read.

    """
    from_files, rest = flat[: arena.layout.file_nbytes], flat[arena.layout.file_nbytes :]
    rest.copy_(arena.kept())
    if arrival is not None:
        arrival.copy(from_files.numel(), rest)
    _read(placements, from_files, move, arrival=arrival)


def pass_through(
    arena: Arena,
    placements: Sequence[Placement],
    stagings: Sequence[torch.Tensor],
    move: Move,
    *,
    arrival: Arrival,
) -> None:
    """
    Fill *arrival* with *arena*'s weights by way of *stagings*, equally long buffers; blocking, and raises, as `read_again`.

    Returns with all copies begun; `Arrival.finish` waits for them.
    """
    arrival.copy(arena.layout.file_nbytes, arena.kept())
    marks: dict[int, object] = {}
    size = stagings[0].numel()
    for number, (at, window) in enumerate(_windows(placements, size)):
        turn = number % len(stagings)
        if turn in marks:
            arrival.wait(marks[turn])
        end = min(size, arena.layout.file_nbytes - at)
        _read(window, stagings[turn][:end], move, arrival=arrival, at=at)
        marks[turn] = arrival.mark()


def staging_sizes(nbytes: int) -> tuple[int, ...]:
    """Return how long the buffers are that *nbytes* pass through."""
    return (nbytes,) if nbytes <= STAGING_BYTES else (STAGING_BYTES,) * _STAGINGS


def _read(
    placements: Sequence[Placement], host: torch.Tensor, move: Move, *, arrival: Arrival | None, at: int = 0
) -> None:
    """Read *placements* into *host*, and have what is there go on to byte *at* of *arrival* and beyond."""
    cells = Cells(host.numel(), [(p.offset, p.size_bytes) for p in placements], cell_bytes=CHUNK_BYTES)

    def written(ranges: Sequence[Range]) -> None:
        move.count(sum(size for _, size in ranges))
        if arrival is None:
            return
        for begin, size in cells.complete(ranges):
            move.go_on()
            arrival.copy(at + begin, host[begin : begin + size])
            move.count(size)

    if placements:
        read_weights(memoryview(host.numpy()), placements, cancelled=move.cancelled, written=written)


def _windows(placements: Sequence[Placement], size: int) -> Iterator[tuple[int, list[Placement]]]:
    """Yield what of *placements* lies in each *size* bytes of the buffer, placed in those, and where they begin."""
    begin, window = 0, list[Placement]()
    for placement in sorted(placements, key=lambda placement: placement.offset):
        at, end = placement.offset, placement.offset + placement.size_bytes
        while at < end:
            if at >= begin + size:
                yield begin, window
                begin, window = at - at % size, []
            until = min(end, begin + size)
            window.append(_cut(placement, at, until, moved_by=begin))
            at = until
    yield begin, window


def _cut(placement: Placement, begin: int, end: int, *, moved_by: int) -> Placement:
    """Return the bytes *begin* to *end* of the buffer that *placement* fills, in a buffer that begins at *moved_by*."""
    stored, wanted = (DTYPE_BYTES[dtype] for dtype in (placement.tensor.dtype, placement.dtype))
    first = placement.tensor.begin + (begin - placement.offset) // wanted * stored
    count = (end - begin) // wanted
    part = replace(placement.tensor, shape=(count,), begin=first, end=first + count * stored)
    return replace(placement, tensor=part, offset=begin - moved_by)
