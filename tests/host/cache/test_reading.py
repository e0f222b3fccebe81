"""Reading weights into one buffer: every byte in its place, and nothing half-done unnoticed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from falctl.errors import ModelFilesError
from falctl.host.cache.headers import DTYPE_BYTES, WeightFile, read_weight_file
from falctl.host.cache.reading import TORCH_DTYPES, Placement, read_weights
from falctl.host.cache.stopping import LoadCancelledError

GUARD = 0xA5


def arranged(files: list[WeightFile], dtype: str | None = None) -> tuple[bytearray, list[Placement]]:
    """Place all tensors at multiples of 512 bytes, floats as *dtype*, in a buffer filled with guard bytes."""
    placements, at = [], 512
    for file in files:
        for tensor in reversed(file.tensors):  # the buffer's order is not the file's
            wanted = dtype if dtype and tensor.dtype in {"F32", "F16", "BF16", "F64"} else tensor.dtype
            placements.append(Placement(file, tensor, at, wanted))
            at += -(-placements[-1].size_bytes // 512) * 512
    return bytearray([GUARD]) * (at + 512), placements


def seen(buffer: bytearray, placement: Placement) -> Any:
    if not placement.size_bytes:
        return torch.empty(placement.tensor.shape, dtype=TORCH_DTYPES[placement.dtype])
    raw = bytearray(buffer[placement.offset : placement.offset + placement.size_bytes])
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[placement.dtype]).reshape(placement.tensor.shape)


def read(buffer: bytearray, placements: list[Placement], **options: Any) -> None:
    with memoryview(buffer) as view:
        read_weights(view, placements, cancelled=threading.Event(), **options)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL"]), st.integers(0, 3000)), max_size=20
    ),
    st.sampled_from([None, "F32", "F16", "BF16"]),
    st.sampled_from([16, 1000, 8 << 20]),
    st.integers(1, 4),
)
def test_every_tensor_arrives_in_its_place_in_its_dtype_and_nothing_beside_it(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[str, int]],
    dtype: str | None,
    chunk: int,
    threads: int,
) -> None:
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    tensors = {f"t{i}": (torch.arange(n) % 251).to(TORCH_DTYPES[name]) for i, (name, n) in enumerate(shapes)}
    save_file(tensors, path)
    buffer, placements = arranged([read_weight_file(path)], dtype)
    read(buffer, placements, chunk_bytes=chunk, threads=threads)
    covered = bytearray(buffer)
    for placement in placements:
        expected = tensors[placement.tensor.name].to(TORCH_DTYPES[placement.dtype])
        assert torch.equal(seen(buffer, placement), expected)
        covered[placement.offset : placement.offset + placement.size_bytes] = (
            bytes([GUARD]) * placement.size_bytes
        )
    assert covered == bytearray([GUARD]) * len(covered)


def two_shards(folder: Path) -> list[WeightFile]:
    for i in range(2):
        weights = {f"{i}.{k}": torch.full((10_000,), i * 10.0 + k) for k in range(20)}
        save_file(weights, folder / f"{i}.safetensors")
    return [read_weight_file(folder / f"{i}.safetensors") for i in range(2)]


def test_shards_and_many_threads_and_short_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    # A kernel that gives 777 bytes at most, as a network file system may.
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: whole(fd, [views[0][:777]], at))
    buffer, placements = arranged(two_shards(tmp_path))
    read(buffer, placements, threads=4, chunk_bytes=30_000)
    for placement in placements:
        shard, k = placement.tensor.name.split(".")
        assert bool((seen(buffer, placement) == int(shard) * 10 + int(k)).all())


def test_small_tensors_are_read_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({f"{i:04}": torch.full((3,), float(i)) for i in range(3000)}, tmp_path / "f")
    calls, whole = [], os.preadv

    def counted(fd: int, views: list[memoryview], at: int) -> int:
        calls.append(len(views))
        return whole(fd, views, at)

    monkeypatch.setattr(os, "preadv", counted)
    file = read_weight_file(tmp_path / "f")
    buffer, placements = arranged([file])
    read(buffer, placements)
    assert sorted(calls) == [952, 1024, 1024]
    assert all(bool((seen(buffer, p) == int(p.tensor.name)).all()) for p in placements)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"replaced")


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [overwrite, replace, truncate, Path.unlink])
@pytest.mark.parametrize("when", ["before", "first", "last"])
def test_a_file_that_changes_is_an_error_and_no_thread_writes_after_it(
    change: Callable[[Path], object], when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = two_shards(tmp_path)
    buffer, placements = arranged(files)
    whole, lock = os.preadv, threading.Lock()
    left = {"n": 1 if when == "first" else 40}

    def changing(fd: int, views: list[memoryview], at: int) -> int:
        with lock:
            left["n"] -= 1
            if left["n"] == 0:
                change(files[1].path)
        return whole(fd, views, at)

    if when == "before":
        change(files[1].path)
    else:
        monkeypatch.setattr(os, "preadv", changing)
    with pytest.raises(ModelFilesError, match=r"while it was read|cannot be read"):
        read(buffer, placements, threads=3, chunk_bytes=40_000)
    assert when != "before" or set(buffer) == {GUARD}, "it was read although it had changed before"
    assert when == "before" or left["n"] <= 0, "the file did not change while it was read"
    assert not [t for t in threading.enumerate() if t.name.startswith("read-weights")]


def test_a_cancel_ends_it_between_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, placements = arranged(two_shards(tmp_path))
    cancelled, whole = threading.Event(), os.preadv
    calls: list[int] = []

    def cancelling(fd: int, views: list[memoryview], at: int) -> int:
        calls.append(at)
        cancelled.set()
        return whole(fd, views, at)

    monkeypatch.setattr(os, "preadv", cancelling)
    with memoryview(buffer) as view, pytest.raises(LoadCancelledError):
        read_weights(view, placements, cancelled=cancelled, threads=1, chunk_bytes=40_000)
    assert len(calls) == 1


def test_every_descriptor_is_closed_after_an_error(tmp_path: Path) -> None:
    files = two_shards(tmp_path)
    buffer, placements = arranged(files)
    truncate(files[1].path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(ModelFilesError):
            read(buffer, placements)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_place_outside_of_the_buffer_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (file, _) = two_shards(tmp_path)
    buffer = bytearray([GUARD]) * 100_000
    good = Placement(file, file.tensors[0], 0, "F32")
    for offset in (-512, 100_000 - file.tensors[1].numel * DTYPE_BYTES["F32"] + 1):
        with pytest.raises(ValueError, match="outside"):
            read(buffer, [good, Placement(file, file.tensors[1], offset, "F32")])
    assert set(buffer) == {GUARD}
