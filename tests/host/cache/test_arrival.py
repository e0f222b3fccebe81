"""Bytes that come into a device's buffer piece by piece; a card's streams, told by their order."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from falctl.host.cache.arrival import PlainArrival, StreamArrival
from falctl.host.cache.device import CpuDevice


def piece(value: int) -> torch.Tensor:
    return torch.full((4,), value, dtype=torch.uint8)


def test_on_a_cpu_what_was_copied_is_there() -> None:
    device = CpuDevice(8)
    arrival = device.arrival(8)
    arrival.copy(4, piece(2))
    mark = arrival.mark()
    arrival.copy(0, piece(1))
    arrival.wait(mark)
    flat = arrival.finish()
    assert (flat.tolist(), device.used_bytes) == ([1] * 4 + [2] * 4, 8)


def test_an_arrival_has_its_memory_before_the_first_byte() -> None:
    device = CpuDevice(8)
    with pytest.raises(torch.OutOfMemoryError):
        device.arrival(9)
    arrival = device.arrival(8)
    assert device.used_bytes == 8
    arrival.abort()
    assert device.used_bytes == 0, "although somebody has the arrival still"


def test_memory_to_pass_through_is_as_long_as_was_asked_for() -> None:
    assert CpuDevice(0).staging(12345).numel() == 12345, "it is none of the device's"


class Stream:
    """A CUDA stream that writes down what becomes of it."""

    log: list[str] = []  # noqa: RUF012 - one for each test, by the fixture

    def __init__(self, device: object) -> None:
        del device

    def wait_stream(self, other: object) -> None:
        self.log.append(f"waits for {other}")

    def synchronize(self) -> None:
        self.log.append("synchronised")

    def record_event(self) -> Event:
        self.log.append("recorded")
        return Event()


class Event:
    def synchronize(self) -> None:
        Stream.log.append("event synchronised")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(Stream, "log", [])
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "the current one")
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _flat, _stream: Stream.log.append("marked"))
    return Stream.log


def given_back(log: list[str]) -> Any:
    return lambda: log.append("given back")


def test_a_stream_waits_for_who_had_the_memory_and_the_buffer_for_the_stream(log: list[str]) -> None:
    arrival = StreamArrival(torch.zeros(8, dtype=torch.uint8), given_back(log))
    arrival.copy(4, piece(2))
    arrival.wait(arrival.mark())
    arrival.copy(0, piece(1))
    assert arrival.finish().tolist() == [1] * 4 + [2] * 4
    assert log == ["waits for the current one", "marked", "recorded", "event synchronised", "synchronised"]


def test_memory_is_given_back_when_no_copy_can_write_to_it_any_more(log: list[str]) -> None:
    arrival = StreamArrival(torch.zeros(8, dtype=torch.uint8), given_back(log))
    arrival.copy(0, piece(1))
    arrival.abort()
    assert log == ["waits for the current one", "marked", "synchronised", "given back"]


@pytest.mark.parametrize("kind", [PlainArrival, StreamArrival])
def test_what_is_over_takes_no_more(log: list[str], kind: Any) -> None:
    for end in ("finish", "abort"):
        arrival = kind(torch.zeros(8, dtype=torch.uint8), given_back(log))
        getattr(arrival, end)()
        with pytest.raises(AssertionError, match="over"):
            arrival.copy(0, piece(1))
        with pytest.raises(AssertionError, match="over"):
            arrival.finish()
