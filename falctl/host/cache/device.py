"""
Where a model runs, as a place for flat buffers of bytes: a CUDA card, or the CPU with a budget that is as hard.

A buffer is used as long as any tensor views it, so there is no call that frees one: `settle`, drop every view, then call
`give_back` (why in that order: `falctl.host.cache.streams`). That is what the card does, and the CPU device counts in the same way, so that a view that somebody kept
shows as bytes in use on both. All calls come from a runner's one executor thread unless they say otherwise.
"""

from __future__ import annotations

import itertools
import logging
import threading
from typing import Final, Protocol

import torch

from falctl.clock import monotonic_s
from falctl.host.cache.arrival import Arrival, PlainArrival, StreamArrival
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.recovery import wait_recovered

log = logging.getLogger(__name__)

_TELLING_BYTES: Final = 1 << 20
"""A smaller copy tells of calls, not of rates."""


class Device(Protocol):
    """A place for weights. Sizes are in bytes and as of the call."""

    @property
    def name(self) -> str:
        """What people call it, such as ``NVIDIA H200``."""
        ...

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are, for a pipeline's inputs."""
        ...

    @property
    def used_bytes(self) -> int:
        """What this process's tensors hold there."""
        ...

    @property
    def peak_bytes(self) -> int:
        """The most that `used_bytes` has been since the start, or since `reset_peak`."""
        ...

    @property
    def free_bytes(self) -> int:
        """What `allocate` may still hand out: advice where other processes use the device, too."""
        ...

    @property
    def copy_rate(self) -> float | None:
        """Bytes a second of the largest copies so far; None: there was none that tells."""
        ...

    @property
    def measures_drawings(self) -> bool:
        """Return whether what a drawing allocates counts, too; else it counts weights alone."""
        ...

    def reset_peak(self) -> None:
        """Measure the peak anew, from what is in use now."""
        ...

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return a flat uint8 tensor; its content is anything. Raises torch.OutOfMemoryError with nothing changed."""
        ...

    def copy_in(self, flat: torch.Tensor, host: torch.Tensor) -> None:
        """Copy all of *host* over all of *flat*, which are equally long, in one copy; blocks until it has arrived."""
        ...

    def arrival(self, nbytes: int) -> Arrival:
        """Return a new buffer that bytes come into piece by piece. Raises torch.OutOfMemoryError with nothing changed."""
        ...

    def staging(self, nbytes: int) -> torch.Tensor:
        """Return *nbytes* of host memory of the kind that copies to it are fastest from; raises OSError."""
        ...

    def settle(self) -> None:
        """Block until nothing that was queued uses any buffer; called before the last view of one is dropped."""
        ...

    def give_back(self) -> None:
        """Return memory that no tensor uses any more to other processes; blocks for the work that is queued."""
        ...


class _Copies:
    """How fast copies were."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._largest_bytes = _TELLING_BYTES

    def took(self, nbytes: int, seconds: float) -> None:
        if nbytes >= self._largest_bytes and seconds > 0:
            self._largest_bytes, self.rate = nbytes, nbytes / seconds


class CpuDevice:
    """The machine's own memory as a device of *budget_bytes*: it copies, and it runs out. `allocate` is thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            msg = f"a device cannot have {budget_bytes} bytes"
            raise ValueError(msg)
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        # The end of a buffer takes no lock, for it may come in the middle of anything: each is one atomic `pop`.
        self._live: dict[int, int] = {}
        self._numbers = itertools.count()
        self._peak_bytes = 0
        self._copies = _Copies()

    @property
    def name(self) -> str:
        return "CPU"

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def used_bytes(self) -> int:
        return sum(tuple(self._live.values()))

    @property
    def peak_bytes(self) -> int:
        return self._peak_bytes

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.used_bytes

    @property
    def copy_rate(self) -> float | None:
        return self._copies.rate

    @property
    def measures_drawings(self) -> bool:
        """No: torch allocates the CPU's activations elsewhere."""
        return False

    def reset_peak(self) -> None:
        self._peak_bytes = self.used_bytes

    def allocate(self, nbytes: int) -> torch.Tensor:
        with self._lock:
            if nbytes > self.free_bytes:
                msg = f"{self.name}: {nbytes} bytes asked for, {self.free_bytes} of {self.budget_bytes} are free"
                raise torch.OutOfMemoryError(msg)
            number = next(self._numbers)
            self._live[number] = nbytes
            try:
                flat = host_buffer(nbytes, released=lambda: self._live.pop(number))
            except OSError as error:
                del self._live[number]
                msg = f"{self.name}: the kernel refused {nbytes} bytes: {error}"
                raise torch.OutOfMemoryError(msg) from error
            self._peak_bytes = max(self._peak_bytes, self.used_bytes)
        return flat

    def copy_in(self, flat: torch.Tensor, host: torch.Tensor) -> None:
        _check_lengths(flat, host)
        began_at = monotonic_s()
        flat.copy_(host)
        self._copies.took(flat.numel(), monotonic_s() - began_at)

    def arrival(self, nbytes: int) -> Arrival:
        return PlainArrival(self.allocate(nbytes), self.give_back)

    def staging(self, nbytes: int) -> torch.Tensor:
        return host_buffer(nbytes)

    def settle(self) -> None:
        """Do nothing: calls return when their work is done."""

    def give_back(self) -> None:
        """Do nothing: a buffer of this device is unmapped with its last view."""


class CudaDevice:
    """One card as this process sees it; the first call makes a CUDA context (100 to 300 MB, some seconds)."""

    def __init__(self, index: int = 0) -> None:
        """Take CUDA's device *index* of this process; inside a runner its first card is always 0."""
        self._device = torch.device("cuda", index)
        self._copies = _Copies()

    @property
    def name(self) -> str:
        return str(torch.cuda.get_device_name(self._device))

    @property
    def torch_device(self) -> torch.device:
        return self._device

    @property
    def used_bytes(self) -> int:
        return int(torch.cuda.memory_allocated(self._device))

    @property
    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated(self._device))

    @property
    def free_bytes(self) -> int:
        """Free on the card, other processes counted, and what our allocator holds in whole unused segments."""
        free = self._card_free_bytes()
        stats = torch.cuda.memory_stats(self._device)
        # The unused rest of a segment that is partly in use cannot be released, nor can it hold a whole arena.
        unused = (
            stats.get("reserved_bytes.all.current", 0)
            - stats.get("active_bytes.all.current", 0)
            - stats.get("inactive_split_bytes.all.current", 0)
        )
        return free + int(max(0, unused))

    @property
    def copy_rate(self) -> float | None:
        return self._copies.rate

    @property
    def measures_drawings(self) -> bool:
        return True

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def copy_in(self, flat: torch.Tensor, host: torch.Tensor) -> None:
        _check_lengths(flat, host)
        torch.cuda.synchronize(self._device)  # what else is queued is no part of the copy
        began_at = monotonic_s()
        flat.copy_(host, non_blocking=True)
        torch.cuda.synchronize(self._device)
        self._copies.took(flat.numel(), monotonic_s() - began_at)

    def arrival(self, nbytes: int) -> Arrival:
        return StreamArrival(self.allocate(nbytes), self.give_back)

    def staging(self, nbytes: int) -> torch.Tensor:
        """As `Device.staging`: pinned, by torch's allocator, which keeps it for the next time, or else pageable."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:  # no more may be pinned, which some systems bound
            log.warning("cache.pageable bytes=%d: %s; copies from it are slower", nbytes, error)
            return host_buffer(nbytes)

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)

    def give_back(self) -> None:
        """As `Device.give_back`; returns when the card has it, or after `RECOVERY_S` seconds."""
        # At once, or small activations find a place in the segment that was dropped, and it cannot return.
        self.settle()
        free_bytes, held_bytes = self._card_free_bytes(), torch.cuda.memory_reserved(self._device)
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()
        given_back = held_bytes - torch.cuda.memory_reserved(self._device)
        wait_recovered(self._card_free_bytes, before_bytes=free_bytes, given_back_bytes=given_back)

    def _card_free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[0])


def _check_lengths(flat: torch.Tensor, host: torch.Tensor) -> None:
    # `copy_` would spread one byte over a whole buffer without a word.
    if flat.shape != host.shape:
        msg = f"{host.numel()} bytes do not fill a buffer of {flat.numel()}"
        raise ValueError(msg)
