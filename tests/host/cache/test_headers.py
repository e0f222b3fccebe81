"""Safetensors headers: believed exactly when the library itself would, and never more."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from falctl.errors import ModelFilesError
from falctl.host.cache.headers import DTYPE_BYTES, parse_header, read_weight_file
from falctl.host.cache.reading import TORCH_DTYPES

SMALL = st.lists(st.integers(0, 5), max_size=3)


def framed(header: Any, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def parsed(file: bytes) -> list[tuple[str, str, list[int], bytes]]:
    length = int.from_bytes(file[:8], "little")
    if length > len(file) - 8:
        raise ValueError
    tensors = parse_header(file[8 : 8 + length], data_begin=8 + length, file_bytes=len(file))
    return [(t.name, t.dtype, list(t.shape), file[t.begin : t.end]) for t in tensors]


def known(file: bytes) -> list[tuple[str, str, list[int], bytes]]:
    return [(n, t["dtype"], t["shape"], bytes(t["data"])) for n, t in safetensors.deserialize(file)]  # type: ignore[no-untyped-call]


@given(
    st.dictionaries(
        st.text("abc.é", max_size=4), st.tuples(st.sampled_from(sorted(TORCH_DTYPES)), SMALL), max_size=6
    )
)
def test_what_the_library_writes_is_read_as_the_library_reads_it(tensors: dict[str, Any]) -> None:
    file = save(
        {name: torch.zeros(shape, dtype=TORCH_DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    )
    assert sorted(parsed(file)) == sorted(known(file))


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "\ud800", "__metadata__"]),
            st.sampled_from(["F32", "F16", "U8", "F4", "?", 3]),
            st.lists(st.sampled_from([0, 1, 2, -1, 1.0, True, 1 << 63, 1 << 70]), max_size=3),
            st.lists(st.integers(-2, 12), min_size=1, max_size=3),
        ),
        max_size=3,
    ),
    st.integers(0, 12),
)
def test_nothing_is_believed_that_the_library_refuses(tensors: list[Any], size: int) -> None:
    header = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, d, s, o in tensors}
    file = framed(header, bytes(size))
    try:
        mine = parsed(file)
    except ValueError:
        return
    assert sorted(mine) == sorted(known(file))


@settings(max_examples=300)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(at: int, damage: bytes) -> None:
    file = bytearray(save({"w": torch.ones(2, 3), "bias": torch.zeros(3, dtype=torch.float16)}))
    at %= len(file)
    file[at : at + len(damage)] = damage
    try:
        mine = parsed(bytes(file))
    except ValueError:
        return
    assert sorted(mine) == sorted(known(bytes(file)))


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}, 6, "begins at"),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, 4, "begins at"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, 3, "end at"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, 5, "end at"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}, 4, "needs 16 bytes and has 4"),
        ({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, 2, "no dtype"),
        ({"a": {"dtype": [], "shape": [4], "data_offsets": [0, 2]}}, 2, "no dtype"),
        ({"a": {"dtype": "U8", "shape": [0, 1 << 62, 4], "data_offsets": [0, 0]}}, 0, "needs"),
        ({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, 1, "counts"),
        ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, 1, "3 offsets"),
        ({"__metadata__": {"format": 1}}, 0, "texts"),
        (b'{"a": 1, "a": 2}', 0, "twice"),
        (b'{"a": NaN}', 0, "NaN"),
        ({"\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}, 0, "surrogates"),
        (b"[]", 0, "begin with"),
        (b'{"a":' + b"[" * 200_000, 0, "nested"),
    ],
)  # fmt: skip
def test_each_lie_is_named(header: Any, data: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed(header, bytes(data)))
    with pytest.raises(ModelFilesError, match=said):
        read_weight_file(path)


@pytest.mark.parametrize("raw", [b"", b"\x01", (1 << 40).to_bytes(8, "little") + b"{}", framed(b"{}")[:-1]])
def test_a_file_cut_off_in_its_header_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(ModelFilesError, match="download it again"):
        read_weight_file(tmp_path / "f")


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(ModelFilesError, match="at most 100000000"):
        read_weight_file(tmp_path / "f")


def test_a_pipe_and_a_missing_file_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFilesError, match="not a regular file"):
        read_weight_file(tmp_path / "pipe")
    with pytest.raises(ModelFilesError, match="No such file"):
        read_weight_file(tmp_path / "none")


def test_every_dtype_has_the_size_that_torch_gives_it() -> None:
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == dict(DTYPE_BYTES)
