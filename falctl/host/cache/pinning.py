"""
Host memory registered with CUDA, so that copies to a card run at the speed of the bus.

Pages are registered where they are (`cudaHostRegister`): `Tensor.pin_memory` would make a second copy, in a buffer that
is rounded up to a power of two and never given back. It is a gain and no more: whatever fails leaves the memory as
pageable as it was, which one line in the log tells.

What is mapped read-only cannot be registered on most machines: not as what it is (cudaErrorNotSupported where the device
attribute HostRegisterReadOnlySupported is 0, as on x86 with a B300 and driver 610: vllm-omni #6240; llama.cpp #6136 met
it before), nor as if it were writable (cudaErrorInvalidValue). So memory is registered as long as its mapping is
writable, and made read-only where it is afterwards: pages stay registered.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch

from falctl.clock import monotonic_s
from falctl.host.cache.buffers import host_buffer

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 64 << 30
"""One call for 512 GiB fails with some drivers (LMCache #5177)."""

_PORTABLE: Final = 1
_READ_ONLY: Final = 8
"""What is mapped read-only can only be registered so; few platforms can."""

_PROBE_BYTES: Final = 64 << 20
_PROBES: Final = 3
_FASTER: Final = 1.1
"""A registration costs 0.1 s a GB and more: copies have to be faster by this factor to be worth it."""


class Cudart(Protocol):
    """What we need of `torch.cuda.cudart()`; both return 0 for success."""

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> Any:  # noqa: N802 - CUDA's name
        ...

    def cudaHostUnregister(self, address: int) -> Any:  # noqa: N802 - CUDA's name
        ...


class Pinning:
    """
    Registers memory with *cudart*. Thread-safe.

    *flush* takes an error of its off the card's queue, *settle* blocks until the card reads nothing that it was told to.
    """

    def __init__(self, cudart: Cudart, *, flush: Callable[[], None], settle: Callable[[], None]) -> None:
        self._cudart = cudart
        self._flush = flush
        self._settle = settle
        self._told = False

    def pin(self, address: int, nbytes: int, *, read_only: bool) -> Callable[[], None] | None:
        """
        Register *nbytes* at *address*, which is that of a page; return what ends it, to be called before it is unmapped.

        Blocks while the kernel pins the pages. None: it stays pageable. *read_only*: it is mapped so.
        """
        done: list[int] = []
        flags = _PORTABLE | (_READ_ONLY if read_only else 0)
        for start in range(address, address + nbytes, CHUNK_BYTES):
            size = min(CHUNK_BYTES, address + nbytes - start)
            if code := int(self._cudart.cudaHostRegister(start, size, flags)):
                self._undo(done)
                self._flush()
                self._tell(nbytes, code, read_only=read_only)
                return None
            done.append(start)
        return lambda: self._undo(done)

    def _undo(self, starts: list[int]) -> None:
        if starts:
            # Whoever dropped the last view did not wait for the copies that he had queued, nor could the collector.
            self._settle()
        codes = [int(self._cudart.cudaHostUnregister(start)) for start in starts]
        if any(codes):
            log.debug("cache.unregistered codes=%s", codes)
            self._flush()

    def _tell(self, nbytes: int, code: int, *, read_only: bool) -> None:
        if not self._told:
            self._told = True
            kind = "read-only " if read_only else ""
            log.warning(
                "cache.pageable bytes=%d code=%d: CUDA does not register %shost memory; copies from it are slower",
                *(nbytes, code, kind),
            )


def registration() -> Pinning:
    """Return the registration of memory for this process's card, whether or not it is worth it. Makes a CUDA context."""
    return Pinning(torch.cuda.cudart(), flush=_flush, settle=_settle)


def card_pinning() -> Pinning | None:
    """
    Return the registration of memory for this process's card; None: there is none, or copies are no faster for it.

    Blocking: makes a CUDA context, and measures some copies of 64 MiB.
    """
    if not torch.cuda.is_available():
        return None
    pinning = registration()
    pageable, pinned = host_buffer(_PROBE_BYTES), host_buffer(_PROBE_BYTES)
    # What was never written is one page of zeroes again and again, which the processor has at hand.
    pageable.fill_(1)
    end = pinning.pin(pinned.data_ptr(), _PROBE_BYTES, read_only=False)
    if end is None:
        return None
    try:
        target = torch.empty(_PROBE_BYTES, dtype=torch.uint8, device="cuda")
        pageable_s, pinned_s = _copy_s(target, pageable), _copy_s(target, pinned)
    except torch.OutOfMemoryError:  # others have the card at the moment
        log.info("cache.pinning worth=unknown: no room on the card to measure it")
        return pinning
    finally:
        end()
    del target
    torch.cuda.empty_cache()
    worth = pinned_s * _FASTER < pageable_s
    log.info(
        "cache.pinning worth=%s pinned_gbps=%.1f pageable_gbps=%.1f",
        *(worth, _PROBE_BYTES / pinned_s / 1e9, _PROBE_BYTES / pageable_s / 1e9),
    )
    return pinning if worth else None


def _copy_s(target: torch.Tensor, source: torch.Tensor) -> float:
    """Return the least time of some copies; the first only finds the pages."""
    taken_s = []
    for _ in range(_PROBES + 1):
        began_at = monotonic_s()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        taken_s.append(monotonic_s() - began_at)
    return min(taken_s[1:])


def _settle() -> None:
    with contextlib.suppress(RuntimeError):  # of a context that is broken, on which nothing runs any more
        torch.cuda.synchronize()


def _flush() -> None:
    """Let an error that a registration has left behind come up here, and not in somebody's drawing."""
    try:
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    except RuntimeError as error:
        log.debug("cache.flushed %s", error)
