"""`python -m benchmarks.swap` compares what really moved bytes, and tells cold files from warm ones."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _page_cache, _wide_pipelines, swap
from benchmarks._host_memories import MEMORIES, Private, memory_of
from falctl.host.cache.device import CpuDevice
from tests.host.cache import tiny_pipelines

MiB = 1 << 20


def dropped(paths: list[Path]) -> None:
    _page_cache.settle(paths)
    try:
        _page_cache.drop(paths)
    except RuntimeError as error:
        pytest.skip(f"files of this folder cannot leave memory: {error}")


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_row_has_every_figure_and_every_reload_brings_the_bytes_back(
    name: str, memory: str, tmp_path: Path
) -> None:
    with memory_of(memory, budget_bytes=64 * MiB) as kind:
        measured = swap.Swap(tiny_pipelines.write(tmp_path, name), CpuDevice(64 * MiB), kind)
        samples = swap.measured(measured, rounds=2, cold=False)
    row = swap.row_of(measured, samples, cold=False)
    assert list(row) == [
        *("name", "bytes", "tensors", "cold"),
        *("memcpy_s", "ram_s", "preadv_s", "skeleton_s", "disk_s", "from_pretrained_s", "to_s"),
    ]
    assert (row["name"], row["cold"]) == (name, False)
    assert row["bytes"] >= sum(t.size_bytes for file in measured.files for t in file.tensors)
    assert all(len(found) == 2 and min(found) > 0 for found in samples.values())
    assert measured.device.used_bytes == 0
    assert {part.tier for part in measured.store.parts().values()} == {"ram"}
    table = swap.table_of(row, cuda=False)
    assert table.rows["ram"]["ms"] == 1000 * row["ram_s"]
    assert len(table.notes) == 2


def test_a_reload_that_brought_other_bytes_is_noticed(tmp_path: Path) -> None:
    measured = swap.Swap(tiny_pipelines.write(tmp_path, "ddpm"), CpuDevice(64 * MiB), Private())
    measured.drop()
    measured.skeleton()
    measured.check()
    with torch.no_grad():
        next(measured.store.place("ddpm").unet.parameters()).add_(1)
    with pytest.raises(AssertionError, match="unet"):
        measured.check()


def test_a_cold_row_reads_files_that_are_not_in_the_page_cache(tmp_path: Path, monkeypatch: Any) -> None:
    measured = swap.Swap(tiny_pipelines.write(tmp_path, "ddpm"), CpuDevice(64 * MiB), Private())
    dropped(measured.paths)
    seen: list[float] = []
    for name in ("preadv", "skeleton", "disk", "from_pretrained"):
        whole = getattr(swap.Swap, name)

        def looked(self: swap.Swap, whole: Any = whole) -> Any:
            seen.append(max(map(_page_cache.resident_share, self.paths)))
            return whole(self)

        monkeypatch.setattr(swap.Swap, name, looked)
    swap.measured(measured, rounds=1, cold=True)
    assert len(seen) == 4
    assert max(seen) <= 0.01
    swap.measured(measured, rounds=1, cold=False)
    assert max(seen) == 1.0


def test_a_file_that_somebody_maps_does_not_pass_for_cold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * MiB))
    dropped([path])
    assert _page_cache.resident_share(path) <= 0.01
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert pages[:: mmap.PAGESIZE].count(0) == 4 * MiB // mmap.PAGESIZE
        assert _page_cache.resident_share(path) == 1.0
        with pytest.raises(RuntimeError, match="100%"):
            _page_cache.drop([path])


ROW: dict[str, Any] = {
    "bytes": 7 << 30,
    "tensors": 1000,
    "memcpy_s": 1.0,
    "ram_s": 1.31,
    "preadv_s": 2.0,
    "skeleton_s": 2.61,
    "disk_s": 2.5,
    "from_pretrained_s": 4.0,
    "to_s": 8.0,
}


def test_goals_on_a_cpu_allow_a_third_more_and_ten_microseconds_a_tensor() -> None:
    assert [goal.met for goal in swap.goals(ROW, cuda=False)] == [True, True]
    assert [goal.met for goal in swap.goals(ROW | {"ram_s": 1.311}, cuda=False)] == [False, True]
    assert [goal.met for goal in swap.goals(ROW | {"skeleton_s": 2.611}, cuda=False)] == [True, False]
    assert [goal.met for goal in swap.goals(ROW | {"tensors": 999}, cuda=False)] == [False, False]


def test_goals_on_a_card_are_rates_and_a_tenth_of_the_usual_way_for_a_large_pipeline() -> None:
    assert [goal.met for goal in swap.goals(ROW, cuda=True)] == [False, True, False]
    fast = ROW | {"ram_s": 1.17, "disk_s": 2.51}
    assert [goal.met for goal in swap.goals(fast, cuda=True)] == [True, False, True]
    assert len(swap.goals(ROW | {"bytes": 1 << 30}, cuda=True)) == 2
    assert "MISSED" in str(swap.goals(ROW, cuda=True)[0])
    assert "1170.0 of 1176.5 ms, met" in str(swap.goals(fast, cuda=True)[0])


def test_the_pipeline_for_a_card_is_as_large_as_its_name_and_the_goals_say() -> None:
    with torch.device("meta"):
        unet = _wide_pipelines.widened(_wide_pipelines.LARGE).unet
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in unet.parameters())
    assert swap.LARGE_BYTES <= nbytes <= 7.5e9
    assert 2 * nbytes < swap.BUDGET_BYTES, "it is in host memory beside what is read for the comparison"
