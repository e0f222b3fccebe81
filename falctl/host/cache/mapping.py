"""
Memory behind a descriptor as a flat tensor: page-aligned, writable until it is protected, unmapped with its last view.

The mapping is ours and not Python's `mmap`, for three reasons: torch warns of every buffer that is read-only; its
protection changes in place, so that views, and a registration with CUDA, stay valid; and what must happen when it goes
happens in this order: registration, mapping, news.

To whom a block is given filled it is mapped shared and read-only. A private writable mapping would let a stray write
(`fuse_lora` is one) succeed: on pages of this runner's own, so that its model is another one from then on, while copies
to a card still come from the shared pages that were registered. A write that ends in SIGSEGV, with the stack of the
thread that made it, is found; a picture that is a little wrong is not.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from typing import Final

import torch

_PROT_READ: Final = 1
_PROT_WRITE: Final = 2
_MAP_SHARED: Final = 1
_MADV_DONTDUMP: Final = 16
"""A runner that crashes should not write its models to the disk, where core files are kept."""
_MADV_POPULATE_READ: Final = 22
"""Linux 5.14; elsewhere the pages are found at the first copy."""
_FAILED: Final = ctypes.c_void_p(-1).value

ALLOCATED_AT_ONCE: Final = 256 << 20
"""A thread that is in the kernel for longer than that takes, 0.1 s, cannot be killed meanwhile."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
for _call in (_libc.munmap, _libc.mprotect, _libc.madvise):
    _call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)[: 2 if _call is _libc.munmap else 3]


def allocate(fd: int, nbytes: int) -> None:
    """
    Take the pages of *fd* from the kernel now; blocks for 0.2 s a GiB.

    A page that is missing when it is touched is SIGBUS, or the OOM killer; here it is an error. Zeroing is left to the
    first touch, on whatever threads fill the block.
    # measured: 0.22 s for 1 GiB, then 0.35 s to write it on one thread; 0.63 s without; 2-core VM, 2026-11-23

    Raises:
        OSError: there is not so much. What was taken goes with the last descriptor.
    """
    for start in range(0, nbytes, ALLOCATED_AT_ONCE):
        os.posix_fallocate(fd, start, min(ALLOCATED_AT_ONCE, nbytes - start))


class Mapping:
    """*nbytes* (one or more) of *fd*, which may be closed after; *gone* is called when the last view has gone."""

    def __init__(self, fd: int, nbytes: int, *, writable: bool, gone: Callable[[], object]) -> None:
        """Map it; blocks for 0.07 s a GiB to find the pages of what is filled. Raises OSError, and *gone* is not called."""
        access = _PROT_READ | (_PROT_WRITE if writable else 0)
        address = _libc.mmap(None, nbytes, access, _MAP_SHARED, fd, 0)
        if address in (None, _FAILED):
            raise OSError(ctypes.get_errno(), f"cannot map {nbytes} bytes: {os.strerror(ctypes.get_errno())}")
        _libc.madvise(address, nbytes, _MADV_DONTDUMP)
        if not writable:
            _libc.madvise(address, nbytes, _MADV_POPULATE_READ)
        self.address: int = address
        self.nbytes = nbytes
        self.before_unmap: list[Callable[[], object]] = []
        """Called before the memory goes, on whatever thread drops the last view."""
        memory = (ctypes.c_ubyte * nbytes).from_address(address)
        finalizer = weakref.finalize(memory, _unmap, address, nbytes, self.before_unmap, gone)
        # Views may be in use until the very end, after which the kernel unmaps.
        finalizer.atexit = False  # type: ignore[misc]  # typeshed does not know that it can be set
        self.flat = torch.frombuffer(memory, dtype=torch.uint8)
        """The bytes; the storage of every view of it keeps the mapping."""

    def protect(self) -> None:
        """Make it read-only where it is; a write is SIGSEGV from now on. Raises OSError."""
        if _libc.mprotect(self.address, self.nbytes, _PROT_READ) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a mapping read-only")


def _unmap(address: int, nbytes: int, before: list[Callable[[], object]], gone: Callable[[], object]) -> None:
    for call in before:
        call()
    _libc.munmap(address, nbytes)
    gone()
