"""
Flat host buffers: page-aligned, and returned to the kernel the moment that nothing refers to them any more.

They are mappings of their own rather than `torch.empty`, whose allocator may keep small blocks, so that the bytes that
a cache counts are the bytes that a process holds; and so that a whole buffer can be registered with CUDA or read into.

They ask for huge pages: the kernel's work at the first touch of each small page takes longer than what is written there.
A reload of 328 MB took 141 ms with pages of 4 KiB and takes 49 ms with those of 2 MiB, and reading it from the page cache
152 and 63 ms (measured: benchmarks/swap.py, sdxl, 2-core VM, 2026-11-23).
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Callable
from typing import Final

import torch

_HUGE_BYTES: Final = 2 << 20
"""A huge page of x86-64, and the smallest of arm64 that matters."""


def host_buffer(nbytes: int, *, released: Callable[[], object] | None = None) -> torch.Tensor:
    """
    Return *nbytes* zeroed bytes as a flat uint8 tensor; does not block, for the kernel finds the pages at first touch.

    *released* is called once, on whatever thread drops the last tensor that views the buffer (at once if the buffer
    is empty). Raises OSError when the address space or the commit limit does not allow it; nothing is held then.
    """
    if nbytes == 0:
        if released is not None:
            released()
        return torch.empty(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _HUGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    if released is not None:
        # The storage of every view holds the mapping, so that its end is the end of the last view.
        weakref.finalize(pages, released)
    return torch.frombuffer(pages, dtype=torch.uint8)
