"""
A buffer of a device that bytes come into piece by piece, while others are still being read.

The device's memory is had before the first byte is read: what does not fit is known before anything has moved. Until
`finish` nobody else refers to it, so that `abort` gives it back at once, also while an error's traceback is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Arrival(Protocol):
    """Bytes on their way into one new buffer of a device. `copy` may come from any thread, the rest from one."""

    def copy(self, at: int, host: torch.Tensor) -> None:
        """Begin to copy *host* to byte *at*; if it is pinned it must stay as it is until then."""
        ...

    def mark(self) -> object:
        """Return a moment to `wait` for: when all copies that have begun so far will have been made."""
        ...

    def wait(self, mark: object) -> None:
        """Block until *mark*."""
        ...

    def finish(self) -> torch.Tensor:
        """Return the buffer; blocks until all has arrived, for whatever is queued on the device from now on."""
        ...

    def abort(self) -> None:
        """Give the buffer's memory back; blocks until no copy is under way. Not after `finish`."""
        ...


class PlainArrival:
    """Copies that whoever asks for them makes; on a CPU that is who has read the bytes, and has them in its caches."""

    def __init__(self, flat: torch.Tensor, give_back: Callable[[], object]) -> None:
        self._flat: torch.Tensor | None = flat
        self._give_back = give_back

    def copy(self, at: int, host: torch.Tensor) -> None:
        assert self._flat is not None, "it is over"
        self._flat[at : at + host.numel()].copy_(host)

    def mark(self) -> object:
        return None

    def wait(self, mark: object) -> None:
        """Do nothing: what was begun has been done."""

    def finish(self) -> torch.Tensor:
        assert self._flat is not None, "it is over"
        flat, self._flat = self._flat, None
        return flat

    def abort(self) -> None:
        self._flat = None
        self._give_back()


class StreamArrival:
    """
    Copies on a CUDA stream of their own, beside what runs and what is read.

    Pinned memory is copied while the caller goes on. Of pageable memory the driver takes a copy first, which blocks
    the caller, one of several threads that read, for about as long as a copy of that memory takes.
    """

    def __init__(self, flat: torch.Tensor, give_back: Callable[[], object]) -> None:
        self._flat: torch.Tensor | None = flat
        self._give_back = give_back
        self._stream = torch.cuda.Stream(flat.device)
        # The allocator hands memory out again in the order of a stream: what is queued there may still write to it.
        self._stream.wait_stream(torch.cuda.current_stream(flat.device))
        flat.record_stream(self._stream)  # however it is let go of: see `streams.py`

    def copy(self, at: int, host: torch.Tensor) -> None:
        assert self._flat is not None, "it is over"
        with torch.cuda.stream(self._stream):
            self._flat[at : at + host.numel()].copy_(host, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        return self._stream.record_event()

    def wait(self, mark: object) -> None:
        assert isinstance(mark, torch.cuda.Event)
        mark.synchronize()

    def finish(self) -> torch.Tensor:
        assert self._flat is not None, "it is over"
        self._stream.synchronize()
        flat, self._flat = self._flat, None
        return flat

    def abort(self) -> None:
        try:
            self._stream.synchronize()  # else a copy would write to memory that others have by then
        finally:
            self._flat = None
        self._give_back()
