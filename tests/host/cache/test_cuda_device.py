"""
What `CudaDevice` and the measurement of pinned copies ask of torch, with a card that exists on paper.

Each call has to fit the signature of the function of torch that it is for; what that does on a card is for tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from falctl.host.cache import device as device_module
from falctl.host.cache import pinning
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.device import CudaDevice
from tests.gpu import guest_child
from tests.host.cache.test_pinning import Card

GiB = 1 << 30
OTHERS = 3 * GiB


class Paper:
    """A card of 16 GiB with torch's allocator: what tensors leave is kept, until the cache is emptied."""

    def __init__(self) -> None:
        self.total, self.allocated, self.reserved, self.peak = 16 * GiB, 0, 0, 0
        self.used = False
        self.calls: list[str] = []

    def empty(self, nbytes: int) -> torch.Tensor:
        self.used = True
        if self.allocated + nbytes > self.total - OTHERS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
        self.allocated += nbytes
        self.reserved = max(self.reserved, self.allocated)
        self.peak = max(self.peak, self.allocated)
        return host_buffer(nbytes, released=lambda: self._free(nbytes))

    def _free(self, nbytes: int) -> None:
        self.allocated -= nbytes

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")
        self.reserved = self.allocated

    def free(self) -> int:
        return self.total - OTHERS - self.reserved


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Paper:
    paper = Paper()
    real_empty = torch.empty

    def empty(*args: Any, device: Any = "cpu", **settings: Any) -> torch.Tensor:
        if torch.device(device).type == "cuda":
            return paper.empty(int(args[0]))
        return real_empty(*args, device=device, **settings)

    def like(name: str, act: Callable[..., Any]) -> None:
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name), side_effect=act))

    monkeypatch.setattr(torch, "empty", empty)
    like("synchronize", lambda _device=None: paper.calls.append("synchronize"))
    like("empty_cache", paper.empty_cache)
    like("mem_get_info", lambda _device=None: (paper.free(), paper.total))
    like("memory_allocated", lambda _device=None: paper.allocated)
    like("max_memory_allocated", lambda _device=None: paper.peak)
    like("reset_peak_memory_stats", lambda _device=None: setattr(paper, "peak", paper.allocated))
    like("memory_reserved", lambda _device=None: paper.reserved)
    like(
        "memory_stats",
        lambda _device=None: {
            "reserved_bytes.all.current": paper.reserved,
            "active_bytes.all.current": paper.allocated,
            "inactive_split_bytes.all.current": 0,
        },
    )
    like("is_initialized", lambda: paper.used)
    like("is_available", lambda: True)
    like("get_device_name", lambda _device=None: "Paper")
    monkeypatch.setattr(torch.cuda, "device", _Here)
    return paper


class _Here:
    def __init__(self, device: Any) -> None:
        assert torch.device(device).type == "cuda"

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_its_figures_are_those_of_the_allocator_and_of_the_driver(card: Paper) -> None:
    device = CudaDevice()
    assert (device.name, device.used_bytes, device.free_bytes) == ("Paper", 0, 13 * GiB)
    flat = device.allocate(GiB)
    assert (device.used_bytes, device.peak_bytes, device.free_bytes) == (GiB, GiB, 12 * GiB)
    del flat
    assert (device.used_bytes, device.free_bytes) == (0, 13 * GiB), "what nobody uses is free, though kept"
    assert card.free() == 12 * GiB
    device.reset_peak()
    assert device.peak_bytes == 0
    with pytest.raises(torch.OutOfMemoryError):
        device.allocate(14 * GiB)


def test_memory_is_given_back_when_the_card_has_done_what_it_was_asked(card: Paper) -> None:
    device = CudaDevice()
    flat = device.allocate(GiB)
    del flat
    card.calls.clear()
    device.give_back()
    assert card.calls == ["synchronize", "empty_cache"]
    assert card.free() == 13 * GiB


def test_what_a_guest_is_promised_holds(card: Paper) -> None:
    guest_child.main()
    assert card.free() == 13 * GiB


def test_a_copy_is_timed_from_when_the_card_is_idle_until_it_has_arrived(card: Paper) -> None:
    device = CudaDevice()
    host = torch.ones(2 << 20, dtype=torch.uint8)
    flat = device.allocate(2 << 20)
    card.calls.clear()
    device.copy_in(flat, host)
    assert card.calls == ["synchronize", "synchronize"]
    assert flat.eq(1).all()
    assert device.copy_rate is not None


def test_where_nothing_can_be_pinned_bytes_pass_through_ordinary_memory(
    card: Paper, caplog: pytest.LogCaptureFixture
) -> None:
    del card  # torch of a CPU build pins nothing, and says so by a RuntimeError
    staged = CudaDevice().staging(1 << 20)
    assert (staged.numel(), staged.device.type) == (1 << 20, "cpu")
    assert torch.cuda.device_count() or "cache.pageable bytes=1048576" in caplog.text


@pytest.mark.parametrize(("pinned_s", "worth"), [(0.01, True), (0.099, False)])
def test_memory_is_registered_where_copies_are_faster_for_it(
    card: Paper, monkeypatch: pytest.MonkeyPatch, pinned_s: float, worth: bool
) -> None:
    registers = Card()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: registers)
    monkeypatch.setattr(pinning, "_copy_s", lambda _target, source: 0.1 if source.eq(1).all() else pinned_s)
    assert (pinning.card_pinning() is not None) == worth
    assert (registers.registered, card.reserved) == ({}, 0), "the measurement leaves nothing"


def test_a_card_that_is_full_when_a_runner_starts_is_no_reason_not_to_start(
    card: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    registers = Card()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: registers)
    card.total = OTHERS
    assert pinning.card_pinning() is not None
    assert registers.registered == {}


def test_an_older_card_that_only_emulates_bfloat16_draws_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    from falctl.host.cache.opening import wanted_dtype

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", create_autospec(torch.cuda.is_bf16_supported, side_effect=supported)
    )
    assert wanted_dtype("auto", cuda=True) == "float16"
    assert wanted_dtype("auto", cuda=False) == "float32"
    assert wanted_dtype("bfloat16", cuda=True) == "bfloat16"


def test_recovery_is_not_waited_for_longer_than_it_takes(
    card: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[int, int]] = []

    def wait_recovered(free: Callable[[], int], *, before_bytes: int, given_back_bytes: int) -> bool:
        waited.append((free() - before_bytes, given_back_bytes))
        return True

    monkeypatch.setattr(device_module, "wait_recovered", wait_recovered)
    device = CudaDevice()
    flat = device.allocate(GiB)
    device.give_back()
    del flat
    device.give_back()
    assert waited == [(0, 0), (GiB, GiB)]
