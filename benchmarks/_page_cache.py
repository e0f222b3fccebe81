"""Which pages of files are in the kernel's page cache, and how to have none there."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def settle(paths: Iterable[Path]) -> None:
    """Write *paths* to the disk, for dirty pages cannot be dropped; blocking."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def drop(paths: Iterable[Path]) -> None:
    """
    Drop the pages of *paths*, which are on the disk and which nobody maps; blocking.

    Raises RuntimeError when more than a hundredth of a file stays.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        if (share := resident_share(path)) > 0.01:
            msg = f"{share:.0%} of {path} stays in the page cache: somebody maps it, or its disk is memory"
            raise RuntimeError(msg)


def resident_share(path: Path) -> float:
    """Return how much of the file *path* is in the page cache, 0 to 1; an empty one is there."""
    size = path.stat().st_size
    if size == 0:
        return 1.0
    with (
        path.open("rb") as file,
        mmap.mmap(
            file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE
        ) as pages,
    ):
        count = -(-size // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * count)()
        start = ctypes.c_char.from_buffer(pages)
        failed = _LIBC.mincore(ctypes.byref(start), ctypes.c_size_t(size), seen)
        del start  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return sum(page & 1 for page in seen) / count
