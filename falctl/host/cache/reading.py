"""
Weights from files straight into one host buffer: parallel `preadv` of large chunks, each byte copied once.

Tensors lie one behind the other in a file and, with gaps for alignment, in the buffer; so one call reads a stretch of the
file and scatters it over many tensors. A tensor that changes its dtype is read into a scratch of a chunk's size and
converted from there. The system call and torch's conversion release the GIL, so threads read at the same time.

The reads go through the page cache, which makes the next one several times as fast. Chunks are small enough that those
in flight lie within the kernel's read-ahead, or the threads would look like random access: 480 MB from a cold disk took
356 ms in chunks of 8 MiB, 255 ms in chunks of 4 MiB read ahead as sequential, 215 ms by one thread in the best order;
O_DIRECT, which needs a copy into unaligned places, gained nothing on that (medians of 8, 2-core VM, virtio, 2026-11-23).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import torch

from falctl.errors import FilesChangedError
from falctl.host.cache.cells import Range
from falctl.host.cache.content_key import require_unchanged
from falctl.host.cache.headers import DTYPE_BYTES, Stamp, TensorEntry, WeightFile, open_regular
from falctl.host.cache.stopping import LoadCancelledError

CHUNK_BYTES: Final = 4 << 20
THREADS: Final = 4
Written: TypeAlias = Callable[[Sequence[Range]], None]
_PIECES_MAX: Final = 1024
"""IOV_MAX of Linux."""

TORCH_DTYPES: Final = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
HEADER_DTYPES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""How safetensors calls each of torch's dtypes."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor of a file goes: row-major, at byte `offset` of the buffer, as `dtype` (a key of `DTYPE_BYTES`)."""

    file: WeightFile
    tensor: TensorEntry
    offset: int
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the buffer."""
        return self.tensor.numel * DTYPE_BYTES[self.dtype]


@dataclass(slots=True)
class _Job:
    """One stretch of a file, and the places of the buffer that it fills; `convert`: from which dtype into which."""

    file: WeightFile
    begin: int
    end: int
    places: list[memoryview] = field(default_factory=list)
    ranges: list[Range] = field(default_factory=list)
    """Of the buffer, those places."""
    convert: tuple[str, str] | None = None

    def takes(self, file: WeightFile, begin: int, chunk_bytes: int) -> bool:
        full = self.end - self.begin >= chunk_bytes or len(self.places) >= _PIECES_MAX
        return not full and self.convert is None and self.file is file and self.end == begin


def _nobody(written: Sequence[Range]) -> None:
    del written


@dataclass(frozen=True, slots=True)
class _Stop:
    cancelled: threading.Event
    written: Written
    failed: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        if self.cancelled.is_set() or self.failed.is_set():
            raise LoadCancelledError


def read_weights(  # noqa: PLR0913 - the last two are for tests
    buffer: memoryview,
    placements: Iterable[Placement],
    *,
    cancelled: threading.Event,
    written: Written = _nobody,
    threads: int = THREADS,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """
    Fill *buffer* (writable bytes) with all *placements*, which must not overlap. Blocking, with *threads* of its own.

    When it raises, the buffer's contents are undefined, but nothing writes to it any more and every file is closed.
    *cancelled* is looked at between chunks. *written* is called with the places of the buffer that each chunk has filled,
    by the thread that has read it, before it reads the next; what that raises ends the reading.

    Raises:
        ModelFilesError: a file is gone, unreadable, or not what it was when its header was read.
        LoadCancelledError: *cancelled* was set before all was read.
        ValueError: a placement lies outside of the buffer.

    """
    jobs = list(_jobs(buffer, sorted(placements, key=_by_place), chunk_bytes))
    stop = _Stop(cancelled, written)
    with ExitStack() as opened:
        descriptors = {}
        for file in {id(job.file): job.file for job in jobs}.values():
            descriptors[id(file)] = open_regular(file.path)
            opened.callback(os.close, descriptors[id(file)])
            os.posix_fadvise(descriptors[id(file)], 0, 0, os.POSIX_FADV_SEQUENTIAL)
            require_unchanged(file, Stamp.of(os.fstat(descriptors[id(file)])))
        _read_all(jobs, descriptors, stop, threads)
        for job in {id(job.file): job for job in jobs}.values():
            # Of the path, which tells of writing into the file and of another one in its place.
            require_unchanged(job.file, _stamp_now(job.file))


def _read_all(jobs: Sequence[_Job], descriptors: dict[int, int], stop: _Stop, threads: int) -> None:
    # Leaving the pool joins its threads, so none of them outlives an error; the first to fail stops the others.
    with ThreadPoolExecutor(threads, thread_name_prefix="read-weights") as pool:
        running = [pool.submit(_read, job, descriptors[id(job.file)], stop) for job in jobs]
    errors = [error for future in running if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, LoadCancelledError)), errors[0])


def _by_place(placement: Placement) -> tuple[str, int, int]:
    return str(placement.file.path), placement.tensor.begin, placement.tensor.end


def _jobs(buffer: memoryview, placements: Iterable[Placement], chunk_bytes: int) -> Iterator[_Job]:
    job: _Job | None = None
    for placement in placements:
        end = placement.offset + placement.size_bytes
        if placement.offset < 0 or end > buffer.nbytes:
            msg = (
                f"{placement.tensor.name} at {placement.offset} to {end} is outside of {buffer.nbytes} bytes"
            )
            raise ValueError(msg)
        place = buffer[placement.offset : end]
        for at, part in _stretches(placement, place, chunk_bytes):
            begin = placement.tensor.begin + _read_bytes(placement, place[:at])
            size = _read_bytes(placement, part)
            convert = (
                None
                if placement.tensor.dtype == placement.dtype
                else (placement.tensor.dtype, placement.dtype)
            )
            if job is None or convert or not job.takes(placement.file, begin, chunk_bytes):
                if job is not None:
                    yield job
                job = _Job(placement.file, begin, begin, convert=convert)
            job.places.append(part)
            job.ranges.append((placement.offset + at, part.nbytes))
            job.end = begin + size
    if job is not None:
        yield job


def _read_bytes(placement: Placement, part: memoryview) -> int:
    """Return how many bytes of the file make *part* of the buffer."""
    return part.nbytes // DTYPE_BYTES[placement.dtype] * DTYPE_BYTES[placement.tensor.dtype]


def _stretches(placement: Placement, place: memoryview, chunk_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Split *place* into parts of about a chunk, each with where it begins there."""
    step = max(1, chunk_bytes // 8) * DTYPE_BYTES[placement.dtype]  # whole elements, of up to 8 bytes
    for at in range(0, place.nbytes, step):
        yield at, place[at : at + step]


def _read(job: _Job, descriptor: int, stop: _Stop) -> None:
    try:
        stop.check()
        if job.convert is None:
            _fill(descriptor, job.places, job)
        else:
            scratch = memoryview(bytearray(job.end - job.begin))
            _fill(descriptor, [scratch], job)
            _convert(scratch, job.places[0], job.convert)
        stop.written(job.ranges)
    except BaseException:
        stop.failed.set()
        raise


def _fill(descriptor: int, places: Sequence[memoryview], job: _Job) -> None:
    """Read from `job.begin` on until *places* are full; the kernel may give less than was asked for."""
    left, at = list(places), job.begin
    while left:
        got = os.preadv(descriptor, left, at)
        if got == 0:
            msg = f"{job.file.path} was truncated while it was read; it ends at byte {at}"
            raise FilesChangedError(msg)
        at += got
        while left and got >= left[0].nbytes:
            got -= left.pop(0).nbytes
        if got:
            left[0] = left[0][got:]


def _convert(scratch: memoryview, place: memoryview, dtypes: tuple[str, str]) -> None:
    source, target = (TORCH_DTYPES[name] for name in dtypes)
    torch.frombuffer(place, dtype=target).copy_(torch.frombuffer(scratch, dtype=source))


def _stamp_now(file: WeightFile) -> Stamp:
    try:
        return Stamp.of(file.path.stat())
    except OSError as error:
        msg = f"{file.path} was removed while it was read"
        raise FilesChangedError(msg) from error
