"""
The board, mapped: every process reads all of it, and each region has exactly one writer at a time.

A region is a seqlock. Its writer makes the sequence word odd, stores length, checksum and payload, and makes it
even again; it begins with ``|= 1``, so that a region whose writer died in between heals with the next write.
A reader takes a copy only if the word was even and the same before and after, and if the checksum agrees.
The checksum covers the even sequence number as well as the payload: on a CPU that lets stores pass each other,
an old payload under a new number is then seen for what it is. A reader never waits for a writer: its tries
are bounded, and what it gives in the end is the last good copy.
"""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path
from typing import Final

from falctl.board import codec
from falctl.board import layout as at
from falctl.board.rows import FleetRow, GpuRow, LifeRow, MemoryRow, RouterRow, RunnerRow
from falctl.errors import ConfigError, FalctlError, NotRunningError

READ_TRIES: Final = 64
"""
As many looks at an odd word take 5.5 us; a row of 9 KB stays odd for 1.0 us, one of 63 KB for 2.1 us.
# measured: best of 500, CPython 3.11, 2-core VM, x86-64, 2026-11-23
"""


class Board:
    """
    One mapping of the board. Not thread-safe: the writer of a region is one thread of one process.

    Rows that are too big are shortened, see `codec.encode`. Each read gives a row, or None if the region was
    never written or was reset; two reads of an unchanged region give the same object.
    """

    def __init__(self, fd: int, *, layout: at.Layout, writable: bool, owns_fd: bool) -> None:
        self.fd = fd
        self.runners = layout.runners
        self.gpus = layout.gpus
        self.layout = layout
        self._owns_fd = owns_fd
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(fd, layout.total_bytes, access=access)
        self._words = memoryview(self._map).cast("Q")
        self._regions = layout.regions()
        self._sequence = layout.sequence_bytes
        self._kept: list[tuple[int, codec.Row | None]] = [(0, None)] * len(self._regions)
        """Per region, the last good copy and the number it stood under."""

    @classmethod
    def create(cls, path: Path, *, runners: int, gpus: int) -> Board:
        """
        Put a new, empty board at *path*, writable; readers of a former one keep theirs.

        Raises:
            ConfigError: there is no room for it, or the file cannot be made; names path and bytes.
        """
        layout = at.Layout(runners=runners, gpus=gpus)
        new = path.with_name(f"{path.name}.new")
        try:
            new.unlink(missing_ok=True)
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, layout.total_bytes)  # a store into a hole on a full disk is SIGBUS
                board = cls(fd, layout=layout, writable=True, owns_fd=True)
                board._write_header()
                new.rename(path)
            except BaseException:
                os.close(fd)
                new.unlink()
                raise
        except OSError as error:
            msg = f"cannot make the board {path} ({layout.total_bytes} bytes): {error.strerror}"
            raise ConfigError(msg) from error
        return board

    @classmethod
    def attach(cls, fd: int) -> Board:
        """
        Map the board behind an inherited descriptor, writable; the descriptor stays the caller's.

        Raises:
            FalctlError: it is not a board of this version.
        """
        return cls(fd, layout=_read_layout(fd, f"descriptor {fd}"), writable=True, owns_fd=False)

    @classmethod
    def open(cls, path: Path) -> Board:
        """
        Map the board at *path* for reading only.

        Raises:
            NotRunningError: there is none.
            FalctlError: it cannot be opened, or is not a board of this version.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            msg = "falctl is not running; start it with `falctl up`"
            raise NotRunningError(msg) from None
        except OSError as error:
            msg = f"cannot open the board {path}: {error.strerror}"
            raise FalctlError(msg) from error
        try:
            return cls(fd, layout=_read_layout(fd, str(path)), writable=False, owns_fd=True)
        except BaseException:
            os.close(fd)
            raise

    def put_fleet(self, row: FleetRow) -> None:
        self._put(at.FLEET, row)

    def fleet(self) -> FleetRow | None:
        return self._get(at.FLEET, FleetRow)[1]

    def put_router(self, row: RouterRow) -> None:
        self._put(at.ROUTER, row)

    def router(self) -> RouterRow | None:
        return self._get(at.ROUTER, RouterRow)[1]

    def put_memory(self, row: MemoryRow) -> None:
        self._put(at.MEMORY, row)

    def memory(self) -> MemoryRow | None:
        return self._get(at.MEMORY, MemoryRow)[1]

    def put_runner(self, runner: int, row: RunnerRow) -> None:
        self._put(self.layout.runner(runner), row)

    def runner(self, runner: int) -> RunnerRow | None:
        return self.numbered_runner(runner)[1]

    def numbered_runner(self, runner: int) -> tuple[int, RunnerRow | None]:
        """Return a runner's row after the sequence number that it stands under; older than its word: not current."""
        return self._get(self.layout.runner(runner), RunnerRow)

    def put_life(self, runner: int, row: LifeRow) -> None:
        self._put(self.layout.life(runner), row)

    def life(self, runner: int) -> LifeRow | None:
        return self._get(self.layout.life(runner), LifeRow)[1]

    def put_gpu(self, gpu: int, row: GpuRow) -> None:
        self._put(self.layout.gpu(gpu), row)

    def gpu(self, gpu: int) -> GpuRow | None:
        return self._get(self.layout.gpu(gpu), GpuRow)[1]

    def reset_runner(self, runner: int) -> None:
        """Make a runner's region read as None. Only for the supervisor, after `wait()` has told it of the exit."""
        self._publish(self._regions[self.layout.runner(runner)], b"")

    def versions(self) -> bytes:
        """Return all sequence words in one copy: equal bytes mean that nothing has changed."""
        return self._map[self._sequence]

    def close(self) -> None:
        """Unmap, and close the descriptor unless it was inherited."""
        self._words.release()
        self._map.close()
        if self._owns_fd:
            os.close(self.fd)

    def _write_header(self) -> None:
        for i, word in enumerate(self.layout.header(codec.SCHEMA)):
            self._words[i] = word

    def _put(self, number: int, row: codec.Row) -> None:
        region = self._regions[number]
        self._publish(region, codec.encode(row, capacity_bytes=region.capacity_bytes))

    def _publish(self, region: at.Region, payload: bytes) -> None:
        words = self._words
        odd = words[region.word] | 1  # already odd if a predecessor died in mid-write; + 1 would say even
        checksum = zlib.crc32(payload, odd + 1)
        words[region.word] = odd
        words[region.length_word] = len(payload)
        words[region.checksum_word] = checksum
        self._store(region, payload)
        words[region.word] = odd + 1

    def _store(self, region: at.Region, payload: bytes) -> None:
        self._map[region.start : region.start + len(payload)] = payload

    def _get(self, number: int, kind: type[codec.R]) -> tuple[int, codec.R | None]:
        region = self._regions[number]
        kept_number, kept = self._kept[number]
        assert kept is None or isinstance(kept, kind)
        for _ in range(READ_TRIES):
            before = self._words[region.word]
            if before == kept_number:
                return kept_number, kept
            if before % 2 == 0:
                checksum, payload = self._copy(region)
                if self._words[region.word] == before and zlib.crc32(payload, before) == checksum:
                    row = codec.decode(kind, payload) if payload else None
                    self._kept[number] = (before, row)
                    return before, row
            if kept is None:
                os.sched_yield()  # with nothing to fall back on, a preempted writer gets its turn
        return kept_number, kept

    def _copy(self, region: at.Region) -> tuple[int, bytes]:
        size = min(self._words[region.length_word], region.capacity_bytes)
        return self._words[region.checksum_word], self._map[region.start : region.start + size]


def _read_layout(fd: int, name: str) -> at.Layout:
    header = os.pread(fd, at.HEADER_WORDS * at.WORD_BYTES, 0)
    words = tuple(memoryview(header.ljust(at.HEADER_WORDS * at.WORD_BYTES, b"\0")).cast("Q"))
    layout = at.layout_of(words, schema=codec.SCHEMA)
    if layout is None or os.fstat(fd).st_size < layout.total_bytes:  # a store past the end is SIGBUS
        msg = (
            f"{name} is not a board of this version of falctl; use the falctl that was started, or restart it"
        )
        raise FalctlError(msg)
    return layout
