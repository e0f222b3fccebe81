"""Large host buffers ask for huge pages, and do without where there are none."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from falctl.host.cache.buffers import host_buffer

MiB = 1 << 20
HUGE = Path("/sys/kernel/mm/transparent_hugepage")


def flags_at(address: int) -> list[str]:
    """Return the flags of the kernel's mapping that holds *address*."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            begin, end = (int(bound, 16) for bound in words[0].split("-"))
            inside = begin <= address < end
        elif inside and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError(f"nothing is mapped at {address:x}")


@pytest.mark.skipif(not HUGE.exists(), reason="this kernel has no transparent huge pages")
def test_a_large_buffer_asks_for_huge_pages() -> None:
    flat = host_buffer(5 * MiB)
    assert "hg" in flags_at(flat.data_ptr())
    assert "hg" not in flags_at(id(flat))


def test_a_buffer_without_huge_pages_is_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)  # as a kernel that knows none: EINVAL
    assert host_buffer(4 * MiB).sum() == 0
