"""
What a swap costs: a model from host memory, from its files, and by `from_pretrained`, each beside the bare copy or read.

    python -m benchmarks.swap [--folder DIR] [--rounds 9] [--only NAME ...] [--json FILE]

Each pipeline is made in a folder for temporary files (or in DIR, to measure another disk) and measured twice: with its
files in the page cache, and without (dropped before every sample that reads, and looked up: none stays). Contenders
take turns, round by round; figures are medians. What is copied is compared, byte for byte, in the first round.

    memcpy           one copy of as many bytes into a fresh buffer of the device, page faults included (on a card: from
                     pinned memory)
    ram              `Arena.to_device` of every component: allocate, copy, re-bind
    preadv           the same files into a fresh host buffer, by the threads and chunks of `read_weights`
    skeleton         `read_weights` into a fresh host buffer, and bind: the modules stand, their bytes were dropped
    disk             skeleton, then ram
    from_pretrained  diffusers; on a CPU it maps the files and reads hardly any of their bytes
    to               each tensor of that moved by itself, as `.to(device)` does it (on a CPU: copied)

On a machine with a card all of it runs there, on `CudaDevice`, and with a pipeline of 7 GB besides.
"""

from __future__ import annotations

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
from benchmarks._report import Table, arguments, packages, publish
from falctl.host.cache.arena import Arena
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CpuDevice, CudaDevice, Device
from falctl.host.cache.folder import read_folder
from falctl.host.cache.headers import WeightFile
from falctl.host.cache.reading import CHUNK_BYTES, THREADS, Placement, read_weights

ROUNDS: Final = 9
BUDGET_BYTES: Final = 16 << 30
"""Of the CPU device: nothing is to run out here."""
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


class Swap:
    """One pipeline, and every way to have it on *device*. Each method that measures returns seconds."""

    def __init__(self, folder: Path, device: Device) -> None:
        self.folder, self.device = folder, device
        pipe = self._load()
        read = read_folder(folder)
        self._weights = {part.name: part.weights for part in read.components if part.weights}
        self.files = tuple(file for files in self._weights.values() for file in files)
        self._modules = {name: getattr(pipe, name) for name in self._weights}
        self.arenas = {name: Arena(module) for name, module in self._modules.items()}
        self._placements = {
            name: placements(arena, self._weights[name]) for name, arena in self.arenas.items()
        }
        self.nbytes = sum(arena.nbytes for arena in self.arenas.values())
        self.tensors = sum(len(arena.layout.slots) for arena in self.arenas.values())
        self._reference = {name: _bytes_of(module) for name, module in self._modules.items()}
        self._source = _source(self.nbytes, device)

    @property
    def paths(self) -> list[Path]:
        """The weight files."""
        return [file.path for file in self.files]

    def memcpy(self) -> float:
        began = time.perf_counter()
        flat = self.device.allocate(self.nbytes)
        self.device.copy_in(flat, self._source)
        spent_s = time.perf_counter() - began
        del flat
        self.device.give_back()
        return spent_s

    def ram(self) -> float:
        began = time.perf_counter()
        for arena in self.arenas.values():
            arena.to_device(self.device)
        return time.perf_counter() - began

    def evict(self) -> None:
        for arena in self.arenas.values():
            arena.evict()

    def preadv(self) -> float:
        began = time.perf_counter()
        flat = host_buffer(sum(file.stamp.size_bytes for file in self.files))
        _read_whole([(file.path, file.stamp.size_bytes) for file in self.files], memoryview(flat.numpy()))
        return time.perf_counter() - began

    def skeleton(self) -> float:
        """Leaves the arenas in the host tier."""
        for arena in self.arenas.values():
            arena.to_skeleton()
        began = time.perf_counter()
        for name, arena in self.arenas.items():
            flat = host_buffer(arena.nbytes)
            read_weights(memoryview(flat.numpy()), self._placements[name], cancelled=threading.Event())
            arena.write_kept(flat)
            arena.attach(flat)
        return time.perf_counter() - began

    def from_pretrained(self) -> tuple[float, float]:
        """Return the seconds of diffusers' load, and of the move that follows."""
        began = time.perf_counter()
        pipe = self._load()
        loaded_at = time.perf_counter()
        moved = [
            tensor.to(self.device.torch_device, copy=True)
            for name in self._weights
            for tensor in (*getattr(pipe, name).parameters(), *getattr(pipe, name).buffers())
        ]
        if moved[0].is_cuda:
            torch.cuda.synchronize()
        return loaded_at - began, time.perf_counter() - loaded_at

    def check(self) -> None:
        """Raise AssertionError unless every arena has, where it is now, the bytes that it had when it was made."""
        for name, module in self._modules.items():
            assert torch.equal(_bytes_of(module), self._reference[name]), name

    def _load(self) -> Any:
        import diffusers

        return diffusers.DiffusionPipeline.from_pretrained(
            self.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )


def placements(arena: Arena, files: Sequence[WeightFile]) -> list[Placement]:
    """Return where each tensor of *files* goes in *arena*; they have the same names there."""
    offsets = {name: slot.offset for slot in arena.layout.slots for name in slot.names}
    return [
        Placement(file, tensor, offsets[tensor.name], tensor.dtype)
        for file in files
        for tensor in file.tensors
    ]


def measured(swap: Swap, *, rounds: int, cold: bool) -> Samples:
    """Return the samples of every contender; *cold*: with no byte of the files in the page cache."""
    samples: Samples = {name: [] for name in CONTENDERS}
    leaving = swap.paths if cold else []
    for number in range(rounds):
        sys.stderr.write(
            f"{swap.folder.name}, {'cold' if cold else 'warm'}: round {number + 1} of {rounds}\n"
        )
        samples["memcpy"].append(swap.memcpy())
        samples["ram"].append(swap.ram())
        if number == 0:
            swap.check()
        swap.evict()
        _page_cache.drop(leaving)
        samples["preadv"].append(swap.preadv())
        _page_cache.drop(leaving)
        samples["skeleton"].append(swap.skeleton())
        samples["disk"].append(samples["skeleton"][-1] + swap.ram())
        if number == 0:
            swap.check()
        swap.evict()
        _page_cache.drop(leaving)
        loaded_s, moved_s = swap.from_pretrained()
        swap.device.give_back()
        samples["from_pretrained"].append(loaded_s)
        samples["to"].append(moved_s)
    return samples


def row_of(swap: Swap, samples: Samples, *, cold: bool) -> dict[str, Any]:
    """Return the medians by the names that the JSON has."""
    known = {"name": swap.folder.name, "bytes": swap.nbytes, "tensors": swap.tensors, "cold": cold}
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


def _bytes_of(module: torch.nn.Module) -> torch.Tensor:
    """Return the values of all its tensors, one behind the other, from wherever they are."""
    tensors = (*module.parameters(), *module.buffers())
    return torch.cat([tensor.detach().cpu().reshape(-1).view(torch.uint8) for tensor in tensors])


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


def _quiet() -> None:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def main() -> int:
    """Measure and publish; five minutes without a card."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=(*_wide_pipelines.NAMES, _wide_pipelines.LARGE)
    )
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    device: Device = CudaDevice() if cuda else CpuDevice(BUDGET_BYTES)
    _quiet()
    rows = []
    for name in options.only or (*_wide_pipelines.NAMES, *((_wide_pipelines.LARGE,) if cuda else ())):
        with _made(options.folder, name) as folder:
            swap = Swap(folder, device)
            _page_cache.settle(swap.paths)
            rows += [
                row_of(swap, measured(swap, rounds=options.rounds, cold=cold), cold=cold)
                for cold in (False, True)
            ]
            del swap
    facts = packages("torch", "diffusers", "transformers", "safetensors")
    facts |= {"device": device.name, "torch threads": str(torch.get_num_threads())}
    facts |= {"reading": f"{THREADS} threads, {CHUNK_BYTES >> 20} MiB at a time"}
    tables = [table_of(row, cuda=cuda) for row in rows]
    publish("Swaps", tables, json_path=options.json, facts=facts, more={"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
