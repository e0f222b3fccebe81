"""
What a card's swaps are made of: the rates of copies from each kind of host memory, and what each step beside them costs.

    python -m benchmarks.bus [--mib 1024] [--rounds 5] [--json FILE]

For a machine with a CUDA card; figures are medians.

    pinned      from memory that torch has pinned
    registered  from memory as runners share it: a memfd, registered while it is writable, then made read-only
    read-only   from a mapping of that which never was writable: registered as such where CUDA does that, else pageable
    pageable    from ordinary memory
    ring        from registered memory in pieces of 64 MiB, on a stream of their own
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch

from benchmarks._report import Table, arguments, packages, publish
from falctl.host.cache.arena import bind
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CudaDevice, Device
from falctl.host.cache.layout import survey
from falctl.host.cache.mapping import Mapping as Mapped
from falctl.host.cache.mapping import allocate
from falctl.host.cache.pinning import Pinning, registration
from falctl.supervisor.host_memory import make_memory

MiB: Final = 1 << 20
PIECE_BYTES: Final = 64 * MiB
TENSORS: Final = 2000


def timed(act: Callable[[], object], device: Device, *, rounds: int) -> float:
    """Return the median seconds of *act*, each with all that it has asked of *device* done; the first does not count."""
    taken = []
    for _ in range(rounds + 1):
        wait(device)
        began = time.perf_counter()
        act()
        wait(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def wait(device: Device) -> None:
    """Return when *device* has done all that was asked of it."""
    if device.torch_device.type == "cuda":
        torch.cuda.synchronize(device.torch_device)


def filled(nbytes: int, pinning: Pinning | None) -> tuple[Mapped, Mapped, float]:
    """Return shared memory as its filler has it, and as one has it who may not write; and the seconds to register it."""
    fd = make_memory(nbytes)
    try:
        allocate(fd, nbytes)
        ours = Mapped(fd, nbytes, writable=True, gone=lambda: None)
        ours.flat.fill_(1)
        began = time.perf_counter()
        _pin(pinning, ours, read_only=False)
        spent_s = time.perf_counter() - began
        ours.protect()
        theirs = Mapped(fd, nbytes, writable=False, gone=lambda: None)
    finally:
        os.close(fd)
    theirs.flat[:: 1 << 12].sum()  # its pages are found
    _pin(pinning, theirs, read_only=True)
    return ours, theirs, spent_s


def _pin(pinning: Pinning | None, mapped: Mapped, *, read_only: bool) -> None:
    if pinning is not None:
        end = pinning.pin(mapped.address, mapped.nbytes, read_only=read_only)
        if end is not None:
            mapped.before_unmap.append(end)


def copies(
    device: Device, sources: Mapping[str, torch.Tensor], *, nbytes: int, rounds: int
) -> dict[str, float]:
    """Return the seconds of a copy of *nbytes* from each of *sources* into a buffer that is there."""
    flat = device.allocate(nbytes)
    found = {
        name: timed(partial(flat.copy_, source, non_blocking=True), device, rounds=rounds)
        for name, source in sources.items()
    }
    found["ring"] = timed(lambda: _in_pieces(flat, sources["registered"], device), device, rounds=rounds)
    return found


def _in_pieces(flat: torch.Tensor, source: torch.Tensor, device: Device) -> None:
    pieces = list(zip(flat.split(PIECE_BYTES), source.split(PIECE_BYTES), strict=True))
    if device.torch_device.type != "cuda":
        for piece, part in pieces:
            piece.copy_(part)
        return
    stream = torch.cuda.Stream(device.torch_device)
    stream.wait_stream(torch.cuda.current_stream(device.torch_device))
    with torch.cuda.stream(stream):
        for piece, part in pieces:
            piece.copy_(part, non_blocking=True)
    torch.cuda.current_stream(device.torch_device).wait_stream(stream)


def steps(device: Device, *, nbytes: int, rounds: int) -> dict[str, float]:
    """Return the seconds of what a swap does beside its copy."""

    def take_and_give_back() -> None:
        flat = device.allocate(nbytes)
        del flat
        device.give_back()

    module = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(TENSORS))
    layout, tensors = survey(module)
    flat = device.allocate(layout.nbytes)
    host = host_buffer(layout.nbytes)
    bound_s = timed(lambda: bind(tensors, layout.slots, flat), device, rounds=rounds)
    bind(tensors, layout.slots, host)
    return {
        "allocate and give back": timed(take_and_give_back, device, rounds=rounds),
        "give back nothing": timed(device.give_back, device, rounds=rounds),
        "ask what is free": timed(lambda: device.free_bytes, device, rounds=rounds),
        f"bind {TENSORS:,} tensors": bound_s,
    }


def measured(
    device: Device, pinning: Pinning | None, *, nbytes: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of copies of *nbytes* by their source, and those of other steps."""
    ours, theirs, register_s = filled(nbytes, pinning)
    pageable = host_buffer(nbytes)
    pageable.fill_(1)
    pinned = torch.ones(nbytes, dtype=torch.uint8)
    if device.torch_device.type == "cuda":
        pinned = pinned.pin_memory()
    sources = {"pinned": pinned, "registered": ours.flat, "read-only": theirs.flat, "pageable": pageable}
    found = copies(device, sources, nbytes=nbytes, rounds=rounds)
    return found, {"register": register_s, **steps(device, nbytes=nbytes, rounds=rounds)}


def tables_of(found: Mapping[str, float], others: Mapping[str, float], *, nbytes: int) -> list[Table]:
    """Return the figures for people."""
    rates = {name: {"ms": 1000 * s, "GB/s#": nbytes / s / 1e9} for name, s in found.items()}
    steps_ms: dict[str, dict[str, Any]] = {name: {"ms": 1000 * s} for name, s in others.items()}
    size = f"{nbytes / MiB:,.0f} MiB"
    return [
        Table(f"Copies of {size} to the card", ("ms", "GB/s#"), rates, "pinned"),
        Table(f"Steps, where bytes matter of {size}", ("ms",), steps_ms, "register"),
    ]


def main() -> int:
    """Measure and publish; some seconds."""
    parser = arguments((__doc__ or "").splitlines()[1])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("this needs a CUDA card, and a torch that can use it\n")
        return 2
    device, nbytes = CudaDevice(), options.mib * MiB
    found, others = measured(device, registration(), nbytes=nbytes, rounds=options.rounds)
    publish(
        "Bus",
        tables_of(found, others, nbytes=nbytes),
        json_path=options.json,
        facts=packages("torch") | {"device": device.name, "cuda": str(torch.version.cuda)},
        more={"copies_s": dict(found), "steps_s": dict(others)},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
