"""The CPU as a device: it copies, it counts what is really held, and it runs out."""

from __future__ import annotations

import mmap
import threading
from typing import Any

import pytest
import torch

from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CpuDevice


def test_it_holds_what_was_allocated_until_the_last_view_is_gone() -> None:
    device = CpuDevice(1000)
    flat = device.allocate(600)
    assert (device.used_bytes, device.free_bytes, device.peak_bytes) == (600, 400, 600)
    view = flat[:4].view(torch.float32)
    del flat
    assert device.used_bytes == 600, "a view holds it all"
    del view
    device.give_back()
    assert (device.used_bytes, device.free_bytes, device.peak_bytes) == (0, 1000, 600)
    device.allocate(10)
    assert device.peak_bytes == 600, "the most, not the latest"
    device.reset_peak()
    assert device.peak_bytes == 0


def test_it_runs_out_with_torchs_own_error_and_nothing_changed() -> None:
    device = CpuDevice(1000)
    flat = device.allocate(600)
    with pytest.raises(torch.OutOfMemoryError, match="401 bytes asked for, 400 of 1000 are free"):
        device.allocate(401)
    assert (device.used_bytes, device.peak_bytes) == (600, 600)
    exactly = device.allocate(400)
    assert device.used_bytes == flat.numel() + exactly.numel() == 1000


def test_what_the_kernel_refuses_is_out_of_memory_too() -> None:
    device = CpuDevice(1 << 62)
    with pytest.raises(torch.OutOfMemoryError, match="the kernel refused"):
        device.allocate(1 << 61)
    assert device.used_bytes == 0


def test_a_copy_is_a_copy_and_of_equal_lengths_only() -> None:
    device, host = CpuDevice(10), torch.arange(10, dtype=torch.uint8)
    flat = device.allocate(10)
    device.copy_in(flat, host)
    host.zero_()
    assert flat.tolist() == list(range(10))
    for length in (1, 9, 11):
        with pytest.raises(ValueError, match=f"^{length} bytes do not fill a buffer of 10"):
            device.copy_in(flat, torch.zeros(length, dtype=torch.uint8))
    assert flat.tolist() == list(range(10))


def test_an_empty_buffer_costs_nothing() -> None:
    device = CpuDevice(0)
    flat = device.allocate(0)
    assert (flat.numel(), device.used_bytes) == (0, 0)
    device.copy_in(flat, host_buffer(0))


class SlowToCount(CpuDevice):
    """The first thread that asks what is free acts on its answer only when a second one has had time to ask, too."""

    def __init__(self, budget_bytes: int) -> None:
        super().__init__(budget_bytes)
        self.first_asked, self.second_asked = threading.Event(), threading.Event()

    @property
    def free_bytes(self) -> int:
        answer = super().free_bytes
        if self.first_asked.is_set():
            self.second_asked.set()
        else:
            self.first_asked.set()
            self.second_asked.wait(timeout=0.3)
        return answer


def test_two_threads_do_not_exceed_the_budget_together() -> None:
    device = SlowToCount(1000)
    got: list[torch.Tensor] = []
    first = threading.Thread(target=lambda: got.append(device.allocate(600)))
    first.start()
    assert device.first_asked.wait(timeout=60)
    with pytest.raises(torch.OutOfMemoryError):
        device.allocate(600)
    first.join(timeout=60)
    assert (len(got), device.used_bytes, device.peak_bytes) == (1, 600, 600)


def test_a_device_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        CpuDevice(-1)


def test_a_host_buffer_is_zeroed_page_aligned_and_says_when_it_is_gone() -> None:
    gone: list[Any] = []
    flat = host_buffer(5000, released=lambda: gone.append(True))
    assert (flat.dtype, flat.numel(), flat.data_ptr() % mmap.PAGESIZE) == (torch.uint8, 5000, 0)
    assert not flat.any()
    assert not gone
    del flat
    assert gone == [True]
    host_buffer(0, released=lambda: gone.append(True))
    assert gone == [True, True], "an empty one is gone at once"
