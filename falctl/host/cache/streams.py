"""
Copies on a stream of their own, and the one rule of what a stream may still touch when memory is let go of.

A call that queues work returns before the work is done, and memory is let go of by dropping the last reference to it,
perhaps by the garbage collector. So, for each kind of memory:

    a device's buffer       used on the stream that it was allocated on alone: torch reuses it in that stream's order.
                            Used on another: it was marked for that stream (`Tensor.record_stream`) before; then torch
                            waits for what is queued there when it is dropped. Whoever evicts calls `Device.settle`
                            first, for an app may have streams of its own
    registered host memory  the card reads it after the call: `Pinning` settles before it unregisters, so before the
                            memory is unmapped or given to others
    pageable host memory    has been read when the call returns

What is read again is ordered by events: a slot is overwritten after all that the computing stream was given before, and
read after the copy. Where that is another stream than the last time, it waits for the last one first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from falctl.host.cache.device import Device


class Copies(Protocol):
    """Moves a block's bytes into its slot. One thread at a time."""

    def mark(self, flat: torch.Tensor) -> None:
        """Note that *flat* is one of the slots, however it is let go of."""
        ...

    def take_over(self) -> None:
        """Have what is queued from now on, by this thread, run after all that was queued for the slots before."""
        ...

    def begin(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> object:
        """Copy each second tensor over its first, after all that was queued before; return what `wait` needs."""
        ...

    def wait(self, copy: object) -> None:
        """Let what is queued from now on run after *copy*."""
        ...


class InlineCopies:
    """Copies that have arrived when `begin` returns."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def mark(self, flat: torch.Tensor) -> None: ...

    def take_over(self) -> None: ...

    def begin(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> object:
        for flat, host in pairs:
            self._device.copy_in(flat, host)
        return None

    def wait(self, copy: object) -> None:
        del copy


class StreamCopies:
    """Copies on a stream of their own beside what runs; the host's bytes should be pinned, else they block for it."""

    def __init__(self, where: torch.device, cuda: Any = torch.cuda) -> None:
        self._where = where
        self._cuda = cuda
        self._stream = cuda.Stream(where)
        self._computing: Any = None
        """The stream that used the slots last."""

    def mark(self, flat: torch.Tensor) -> None:
        flat.record_stream(self._stream)

    def take_over(self) -> None:
        current = self._cuda.current_stream(self._where)
        if self._computing is not None and current != self._computing:
            current.wait_stream(self._computing)
        self._computing = current

    def begin(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> object:
        # Whoever used the slot is queued on the stream that computes; the copy must come after that.
        self._stream.wait_stream(self._cuda.current_stream(self._where))
        with self._cuda.stream(self._stream):
            for flat, host in pairs:
                flat.copy_(host, non_blocking=True)
            return self._stream.record_event()

    def wait(self, copy: object) -> None:
        self._cuda.current_stream(self._where).wait_event(copy)


def copies_for(device: Device) -> Copies:
    """Return how blocks are copied to *device*: beside what runs where it can."""
    if device.torch_device.type == "cuda":
        return StreamCopies(device.torch_device)
    return InlineCopies(device)
