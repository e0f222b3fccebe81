"""
Headers of safetensors files: where each tensor's bytes lie, believed only once every offset has been checked.

A file is eight bytes (the header's length, little-endian), the header (JSON), the tensors' bytes. As the format asks,
the tensors lie one behind the other with no hole, no overlap, and nothing behind the last: so a truncated download, one
that has not been written to its end and one that was appended to are told by their size, before a byte is read.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from falctl.errors import ModelFilesError

HEADER_BYTES_MAX: Final = 100_000_000
"""safetensors' own limit."""
_LENGTH_BYTES: Final = 8
_COUNT_MAX: Final = (1 << 63) - 1

DTYPE_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element. Those of less than a byte (F4, F6) are refused: no pipeline of diffusers reads them."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another without reading it: any write, rename or chmod changes one of these."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, seen: os.stat_result) -> Stamp:
        return cls(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: contiguous, in row-major order, at bytes `begin` to `end` of the file."""

    name: str
    dtype: str
    """safetensors' name for it, a key of `DTYPE_BYTES`."""
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin

    @property
    def numel(self) -> int:
        return self.size_bytes // DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file as it was when its header was read; tensors in the order of their bytes."""

    path: Path
    stamp: Stamp
    tensors: tuple[TensorEntry, ...]


def read_weight_file(path: Path) -> WeightFile:
    """
    Return the checked header of *path*. Blocking: opens the file and reads its header only.

    Raises:
        ModelFilesError: it is not there, not a regular file, truncated, or not a sound safetensors file.

    """
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        stamp = Stamp.of(os.fstat(descriptor))
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(HEADER_BYTES_MAX, stamp.size_bytes - _LENGTH_BYTES):
            msg = (
                f"{path} is no whole safetensors file: it has {stamp.size_bytes} bytes and says that its header "
                f"has {length} (at most {HEADER_BYTES_MAX}); download it again"
            )
            raise ModelFilesError(msg)
        raw = file.read(length)
    try:
        tensors = parse_header(raw, data_begin=_LENGTH_BYTES + length, file_bytes=stamp.size_bytes)
    except ValueError as error:
        msg = f"{path} is no sound safetensors file: {error}; download it again"
        raise ModelFilesError(msg) from error
    return WeightFile(path, stamp, tensors)


def open_regular(path: Path) -> int:
    """
    Return a descriptor that reads *path*, and never waits for a pipe's writer. The caller closes it.

    Raises:
        ModelFilesError: it cannot be opened, or is not a regular file.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise ModelFilesError(msg) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = f"{path} is not a regular file"
        raise ModelFilesError(msg)
    return descriptor


def parse_header(raw: bytes, *, data_begin: int, file_bytes: int) -> tuple[TensorEntry, ...]:
    """
    Return the tensors that the header *raw* names, in the order of their bytes, at offsets of the whole file.

    Raises:
        ValueError: it is not JSON, or a tensor's dtype, shape or offsets cannot be, or the file is too short or long.

    """
    if not raw.startswith(b"{"):
        msg = "its header does not begin with '{'"
        raise ValueError(msg)
    try:
        entries = json.loads(raw.decode(), object_pairs_hook=_once_each, parse_constant=_no_constant)
    except RecursionError as error:
        msg = "its header is nested too deeply"
        raise ValueError(msg) from error
    _check_metadata(entries.pop("__metadata__", None))
    tensors = sorted(
        (_entry(name, value, data_begin) for name, value in entries.items()), key=lambda t: (t.begin, t.end)
    )
    at = data_begin
    for tensor in tensors:
        if tensor.begin != at:
            msg = f"tensor {tensor.name!r} begins at byte {tensor.begin} of the file, not at {at}"
            raise ValueError(msg)
        at = tensor.end
    if at != file_bytes:
        msg = f"its tensors end at byte {at}, the file at {file_bytes}"
        raise ValueError(msg)
    return tuple(tensors)


def _entry(name: str, value: Any, data_begin: int) -> TensorEntry:
    if not isinstance(value, dict) or value.get("dtype") not in tuple(DTYPE_BYTES):
        msg = f"tensor {name!r} has no dtype of {', '.join(DTYPE_BYTES)}"
        raise ValueError(msg)
    name.encode()  # half a surrogate pair is no name; UnicodeEncodeError is a ValueError
    shape, offsets = _counts(name, value.get("shape")), _counts(name, value.get("data_offsets"))
    if len(offsets) != 2:
        msg = f"tensor {name!r} has {len(offsets)} offsets"
        raise ValueError(msg)
    begin, end = offsets
    size = math.prod(shape) * DTYPE_BYTES[value["dtype"]]
    if math.prod(filter(None, shape)) > _COUNT_MAX or end - begin != size:
        msg = f"tensor {name!r} of shape {list(shape)} needs {size} bytes and has {end - begin}"
        raise ValueError(msg)
    return TensorEntry(name, value["dtype"], shape, data_begin + begin, data_begin + end)


def _counts(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= _COUNT_MAX for n in value):
        msg = f"tensor {name!r} has a shape or offsets that are no list of counts"
        raise ValueError(msg)
    return tuple(value)


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        msg = "its __metadata__ is no table of texts"
        raise ValueError(msg)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a name stands in its header twice"
        raise ValueError(msg)
    return found


def _no_constant(text: str) -> NoReturn:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


def read_json(path: Path, *, bytes_max: int) -> dict[str, Any]:
    """
    Return the object in the JSON file *path*. Blocking.

    Raises:
        ModelFilesError: it cannot be read, is larger than *bytes_max*, or holds anything but one JSON object.

    """
    with os.fdopen(open_regular(path), "rb") as file:
        raw = file.read(bytes_max + 1)
    try:
        if len(raw) > bytes_max:
            msg = f"it is larger than {bytes_max} bytes"
            raise ValueError(msg)  # noqa: TRY301 - said in one way with what json says
        value = json.loads(raw)
        if not isinstance(value, dict):
            msg = "it is no JSON object"
            raise ValueError(msg)  # noqa: TRY301, TRY004 - as above
    except (ValueError, RecursionError) as error:
        msg = f"{path} cannot be used: {error}"
        raise ModelFilesError(msg) from error
    return cast("dict[str, Any]", value)
