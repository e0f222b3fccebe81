"""
What a swap costs: a model from host memory, from its files, and by `from_pretrained`, each beside the bare copy or read.

    python -m benchmarks.swap [--folder DIR] [--rounds 9] [--only NAME ...] [--json FILE]

Each pipeline is made in a folder for temporary files (or in DIR, to measure another disk) and measured twice: with its
files in the page cache, and without (dropped before every sample that reads, and looked up: none stays). Contenders
take turns, round by round, with who goes first; figures are medians. What came back is compared, byte for byte.

    memcpy           one copy of as many bytes into a fresh buffer of the device, page faults included (on a card: from
                     pinned memory)
    ram              `PipelineStore.place`: every component allocates, copies and re-binds
    preadv           the same files into a fresh block of host memory, by the threads and chunks of `read_weights`
    skeleton         `PipelineStore.fill`: the modules stand, their bytes were dropped and come into fresh blocks
    disk             `PipelineStore.place` of such a skeleton: each byte goes on to the device while others are read
    from_pretrained  diffusers; on a CPU it maps the files and reads hardly any of their bytes
    to               each tensor of that moved by itself, as `.to(device)` does it (on a CPU: copied)

Host memory is what runners have: blocks that the supervisor holds and they share; with ``--memory private`` it is the
process's own, as where nothing is shared.

On a machine with a card all of it runs there, on `CudaDevice`, and with a pipeline of 7 GB besides.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks import _page_cache, _wide_pipelines
from benchmarks._host_memories import MEMORIES, Memory, memory_of
from benchmarks._report import Table, arguments, packages, publish
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CpuDevice, CudaDevice, Device
from falctl.host.cache.folder import read_folder
from falctl.host.cache.opening import import_libraries
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.reading import CHUNK_BYTES, THREADS

ROUNDS: Final = 9
BUDGET_BYTES: Final = 16 << 30
"""Of the CPU device and of host memory: nothing is to run out here."""
PER_TENSOR_S: Final = 10e-6
LARGE_BYTES: Final = 6 << 30
CONTENDERS: Final = ("memcpy", "ram", "preadv", "skeleton", "disk", "from_pretrained", "to")

Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one figure of a row, in seconds."""

    text: str
    found_s: float
    limit_s: float

    @property
    def met(self) -> bool:
        return self.found_s <= self.limit_s

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return f"{self.text}: {1000 * self.found_s:.1f} of {1000 * self.limit_s:.1f} ms, {verdict}."


def goals(row: Mapping[str, Any], *, cuda: bool) -> list[Goal]:
    """Return the goals of *row*, which has the figures by their names in the JSON."""
    extra_s = PER_TENSOR_S * row["tensors"]
    if not cuda:
        return [
            Goal("RAM reload, 1.3 x memcpy + 10 us a tensor", row["ram_s"], 1.3 * row["memcpy_s"] + extra_s),
            Goal("Skeleton reload, 1.3 x preadv + 10 us a tensor", row["skeleton_s"], 1.3 * row["preadv_s"] + extra_s),
        ]  # fmt: skip
    found = [
        Goal("RAM reload, 85 % of the pinned copy rate", row["ram_s"], row["memcpy_s"] / 0.85),
        Goal("Disk load, 80 % of the read rate", row["disk_s"], row["preadv_s"] / 0.8),
    ]
    if row["bytes"] >= LARGE_BYTES:
        usual_s = row["from_pretrained_s"] + row["to_s"]
        found.append(Goal("RAM reload, a tenth of from_pretrained and to", row["ram_s"], usual_s / 10))
    return found


@dataclass(frozen=True, slots=True)
class Folder:
    """A `falctl.toolkit.model_source.ModelSource`."""

    place: str
    local: bool = True
    loras: tuple[str, ...] = ()


class Swap:
    """One pipeline, and every way to have it on *device*. Each method that measures returns seconds."""

    def __init__(self, folder: Path, device: Device, memory: Memory) -> None:
        self.folder, self.device, self._memory = folder, device, memory
        read = read_folder(folder)
        self._weighty = [part.name for part in read.components if part.weights]
        self.files = tuple(file for part in read.components for file in part.weights)
        self.name = folder.name
        self.store = PipelineStore(
            lambda name: Folder(str(folder)), device=device, memory=memory.memory, dtype="float32"
        )
        self.store.construct(self.name)
        self.nbytes = sum(part.nbytes for part in self.store.parts().values())
        self._modules = self._modules_of(self.store.place(self.name))
        self.evict()
        self.tensors = sum(1 for module in self._modules.values() for _ in _tensors_of(module))
        self._reference = {name: torch.cat(list(_bytes_of(module))) for name, module in self._modules.items()}
        self._source = _source(self.nbytes, device)

    @property
    def paths(self) -> list[Path]:
        """The weight files."""
        return [file.path for file in self.files]

    def memcpy(self) -> float:
        began = time.perf_counter()
        flat = self.device.allocate(self.nbytes)
        self.device.copy_in(flat, self._source)
        _wait(self.device)
        spent_s = time.perf_counter() - began
        del flat
        self.device.give_back()
        return spent_s

    def ram(self) -> float:
        """From host memory onto the device, where it stays."""
        began = time.perf_counter()
        self.store.place(self.name)
        _wait(self.device)
        return time.perf_counter() - began

    def evict(self) -> None:
        for key in self.store.parts():
            self.store.evict(key)

    def preadv(self) -> float:
        sizes = [(file.path, file.stamp.size_bytes) for file in self.files]
        used_bytes = self._memory.used_bytes()
        began = time.perf_counter()
        block = self._memory.memory.obtain("preadv", sum(size for _, size in sizes))
        _read_whole(sizes, memoryview(block.flat.numpy()))
        block.seal()
        spent_s = time.perf_counter() - began
        block.release()
        del block
        self._memory.settle(used_bytes)
        return spent_s

    def drop(self) -> None:
        """Make skeletons of what is in host memory; the first time the store proves that the files bring it back."""
        for key in self.store.parts():
            self.store.drop(key)
        self._memory.settle(0)
        assert {part.tier for part in self.store.parts().values()} == {"disk"}

    def skeleton(self) -> float:
        """From the files into host memory, where it stays."""
        began = time.perf_counter()
        self.store.fill(self.name, threading.Event())
        return time.perf_counter() - began

    def disk(self) -> float:
        """From the files onto the device, by way of host memory, where it stays, too."""
        began = time.perf_counter()
        self.store.place(self.name, filling=True)
        _wait(self.device)
        return time.perf_counter() - began

    def from_pretrained(self) -> tuple[float, float]:
        """Return the seconds of diffusers' load, and of the move that follows."""
        import diffusers

        began = time.perf_counter()
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            self.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        loaded_at = time.perf_counter()
        moved = [
            tensor.to(self.device.torch_device, copy=True)
            for module in self._modules_of(pipe).values()
            for tensor in _tensors_of(module)
        ]
        _wait(self.device)
        moved_at = time.perf_counter()
        del moved
        return loaded_at - began, moved_at - loaded_at

    def check(self) -> None:
        """Raise AssertionError unless every component has, where it is now, the bytes that it was loaded with."""
        for name, module in self._modules.items():
            expected = self._reference[name]
            at = 0
            for found in _bytes_of(module):  # one by one: there may be 7 GB of them
                assert torch.equal(found, expected[at : at + found.numel()]), name
                at += found.numel()
            assert at == expected.numel(), name

    def _modules_of(self, pipe: Any) -> dict[str, torch.nn.Module]:
        return {name: getattr(pipe, name) for name in self._weighty}


def measured(swap: Swap, *, rounds: int, cold: bool) -> Samples:
    """Return the samples of every contender; *cold*: with no byte of the files in the page cache."""
    samples: Samples = {name: [] for name in CONTENDERS}

    def copy_bare() -> None:
        samples["memcpy"].append(swap.memcpy())

    def reload() -> None:
        samples["ram"].append(swap.ram())
        swap.check()
        swap.evict()

    def read_bare() -> None:
        _page_cache.drop(leaving)
        samples["preadv"].append(swap.preadv())

    def read() -> None:
        swap.drop()
        _page_cache.drop(leaving)
        samples["skeleton"].append(swap.skeleton())
        swap.ram()
        swap.check()
        swap.evict()

    def load() -> None:
        swap.drop()
        _page_cache.drop(leaving)
        samples["disk"].append(swap.disk())
        swap.check()
        swap.evict()

    leaving = swap.paths if cold else []
    for number in range(rounds):
        sys.stderr.write(f"{swap.name}, {'cold' if cold else 'warm'}: round {number + 1} of {rounds}\n")
        for group in ((copy_bare, reload), (read_bare, read, load)):
            for measure in group if number % 2 else reversed(group):
                measure()
        _page_cache.drop(leaving)
        loaded_s, moved_s = swap.from_pretrained()
        gc.collect()  # a pipeline and its modules refer to each other, and keep the files mapped
        swap.device.give_back()
        samples["from_pretrained"].append(loaded_s)
        samples["to"].append(moved_s)
    return samples


def _rows_of(swap: Swap, *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the row of *swap* with its files in the page cache, and, if they can leave it, the one without."""
    _page_cache.settle(swap.paths)
    yield row_of(swap, measured(swap, rounds=rounds, cold=False), cold=False)
    if _can_be_cold(swap.paths):
        yield row_of(swap, measured(swap, rounds=rounds, cold=True), cold=True)


def row_of(swap: Swap, samples: Samples, *, cold: bool) -> dict[str, Any]:
    """Return the medians by the names that the JSON has."""
    known = {"name": swap.name, "bytes": swap.nbytes, "tensors": swap.tensors, "cold": cold}
    return known | {f"{name}_s": statistics.median(samples[name]) for name in CONTENDERS}


def table_of(row: Mapping[str, Any], *, cuda: bool) -> Table:
    """Return *row* for people, with what became of its goals."""
    how = "files not in the page cache" if row["cold"] else "files in the page cache"
    rows = {
        name: {"ms": 1000 * row[f"{name}_s"], "GB/s#": row["bytes"] / row[f"{name}_s"] / 1e9}
        for name in CONTENDERS
    }
    title = f"{row['name']}, {row['bytes'] / 1e6:,.0f} MB in {row['tensors']:,} tensors, {how}"
    return Table(title, ("ms", "GB/s#"), rows, "memcpy", [str(goal) for goal in goals(row, cuda=cuda)])


def _can_be_cold(paths: Sequence[Path]) -> bool:
    """Return whether *paths* can leave the page cache; if not, say so."""
    try:
        _page_cache.drop(paths)
    except RuntimeError as error:
        sys.stderr.write(f"no cold rows: {error}; --folder names another disk\n")
        return False
    return True


@contextmanager
def _made(parent: Path | None, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="falctl-swap-", dir=parent) as folder:
        sys.stderr.write(f"{name}: being made\n")
        yield _wide_pipelines.write(Path(folder), name)


def _source(nbytes: int, device: Device) -> torch.Tensor:
    """Return touched bytes to copy from, of the fastest kind that there is for *device*."""
    if device.torch_device.type == "cuda":
        return torch.ones(nbytes, dtype=torch.uint8).pin_memory()
    flat = host_buffer(nbytes)
    flat.fill_(1)
    return flat


def _wait(device: Device) -> None:
    """Return when *device* has done all that was asked of it."""
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize(device.torch_device)


def _tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield every parameter and buffer once."""
    yield from module.parameters()
    yield from module.buffers()


def _bytes_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield the values of each of its tensors, from wherever they are."""
    for tensor in _tensors_of(module):
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8)


def _read_whole(files: Sequence[tuple[Path, int]], buffer: memoryview) -> None:
    """Read *files*, of so many bytes each, one behind the other into *buffer*, as `read_weights` reads its stretches."""
    descriptors = [os.open(path, os.O_RDONLY) for path, _ in files]
    for descriptor in descriptors:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    jobs: list[tuple[int, int, memoryview]] = []
    base = 0
    for descriptor, (_, size) in zip(descriptors, files, strict=True):
        whole = buffer[base : base + size]
        jobs += [(descriptor, at, whole[at : at + CHUNK_BYTES]) for at in range(0, size, CHUNK_BYTES)]
        base += size
    with ThreadPoolExecutor(THREADS) as pool:
        for got, (_, _, part) in zip(
            pool.map(lambda job: os.preadv(job[0], [job[2]], job[1]), jobs), jobs, strict=True
        ):
            assert got == part.nbytes, "the disk gave less than was asked for"
    for descriptor in descriptors:
        os.close(descriptor)


def main() -> int:
    """Measure and publish; five minutes without a card."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=(*_wide_pipelines.NAMES, _wide_pipelines.LARGE)
    )
    parser.add_argument("--memory", choices=MEMORIES, default=MEMORIES[0], help="what kind of host memory")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device: Device = CudaDevice() if cuda else CpuDevice(BUDGET_BYTES)
    import_libraries()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    ended = False
    try:
        for name in options.only or (*_wide_pipelines.NAMES, *((_wide_pipelines.LARGE,) if cuda else ())):
            with (
                _made(options.folder, name) as folder,
                memory_of(options.memory, budget_bytes=BUDGET_BYTES) as memory,
            ):
                rows.extend(_rows_of(Swap(folder, device, memory), rounds=options.rounds))
    except KeyboardInterrupt:  # what was measured is not lost
        ended = True
    facts = packages("torch", "diffusers", "transformers", "safetensors")
    facts |= {
        "device": device.name,
        "host memory": options.memory,
        "torch threads": str(torch.get_num_threads()),
    }
    facts |= {"reading": f"{THREADS} threads, {CHUNK_BYTES >> 20} MiB at a time"}
    tables = [table_of(row, cuda=cuda) for row in rows]
    publish("Swaps", tables, json_path=options.json, facts=facts, more={"rows": rows})
    return int(ended)


if __name__ == "__main__":
    sys.exit(main())
