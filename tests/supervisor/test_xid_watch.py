"""XIDs reach the loop, each for the cards that it concerns, and a card that tells none keeps nobody."""

from __future__ import annotations

import asyncio
import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pynvml
import pytest

from falctl.core.cards import Card
from falctl.supervisor import xid_watch
from falctl.supervisor.nvml import probe
from falctl.supervisor.xid_watch import XidWatch
from tests.fakes.nvml import DOUBLE_BIT_ECC_EVENT, GPU_IS_LOST, FakeCard, FakeNvml, card, mig_card
from tests.fakes.nvml.fixtures import MakeNvml
from tests.wait import until

WITHIN_S = 60.0


@pytest.fixture
def make(make_nvml: MakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeNvml]:
    """Make a machine, and its library that of this very process."""

    def here(*cards: FakeCard) -> FakeNvml:
        fake = make_nvml(*cards)
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(fake.library)))
        monkeypatch.setenv("FAKE_NVML_STATE", str(fake.state))
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return fake

    monkeypatch.setattr(xid_watch, "WAIT_MS", 50)
    monkeypatch.setattr(xid_watch, "_PAUSE_S", 0.01)
    yield here
    pynvml._nvmlGetFunctionPointer_cache.clear()


def watching() -> set[str]:
    return {t.name.removeprefix("xids ") for t in threading.enumerate() if t.name.startswith("xids ")}


def cards() -> tuple[Card, ...]:
    machine = probe()
    assert machine is not None
    return machine.cards


@contextmanager
def watched(*cards: Card) -> Iterator[Callable[[], tuple[str, int]]]:
    """Watch *cards*, on a loop of its own; yield what waits for the next XID, once all who can are registered."""
    heard: queue.Queue[tuple[str, int]] = queue.Queue()
    registered: list[str] = []
    register = pynvml.nvmlDeviceRegisterEvents

    def noted(handle: object, types: int, events: object) -> None:
        register(handle, types, events)
        registered.append(threading.current_thread().name)

    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    watch = XidWatch(cards, lambda uuid, xid: heard.put((uuid, xid)), loop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pynvml, "nvmlDeviceRegisterEvents", noted)
        watch.start()
        until(lambda: len(registered) >= len(watching()), within_s=WITHIN_S, what="all are registered")
    try:
        yield lambda: heard.get(timeout=WITHIN_S)
        assert heard.empty()
    finally:
        watch.stop()
        until(lambda: not watching(), within_s=WITHIN_S, what="the threads have ended")
        loop.call_soon_threadsafe(loop.stop)
        running.join(WITHIN_S)
        loop.close()


def test_an_xid_is_told_of_its_card_alone_and_each_of_several(make: MakeNvml) -> None:
    fake = make(card(0), card(1))
    with watched(*cards()) as heard:
        fake.tell_xid(1, 79)
        assert heard() == (fake.uuids[1], 79)
        fake.tell_xid(0, 31)
        assert heard() == (fake.uuids[0], 31)
        fake.tell_xid(0, 31)
        assert heard() == (fake.uuids[0], 31)


def test_what_happened_before_the_start_is_not_told(make: MakeNvml) -> None:
    fake = make(card(0, xids=3, xid=48))
    with watched(*cards()) as heard:
        fake.tell_xid(0, 94)
        assert heard() == (fake.uuids[0], 94)


def test_a_double_bit_error_without_a_number_is_xid_48(make: MakeNvml) -> None:
    fake = make(card(0))
    with watched(*cards()) as heard:
        fake.tell_xid(0, 0, event=DOUBLE_BIT_ECC_EVENT)
        assert heard() == (fake.uuids[0], 48)


def test_an_xid_of_a_mig_instance_is_that_instances_and_one_of_the_card_is_of_all(make: MakeNvml) -> None:
    fake = make(mig_card(0, instances=2))
    _, first, second = cards()
    with watched(first, second) as heard:
        fake.tell_xid(0, 94, instance=2)
        assert heard() == (second.uuid, 94)
        fake.tell_xid(0, 79)
        assert [heard(), heard()] == [(first.uuid, 79), (second.uuid, 79)]


def test_a_card_that_fails_to_answer_is_asked_again(make: MakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = make(card(0))
    wait, failed = pynvml.nvmlEventSetWait_v2, threading.Event()

    def noted(events: object, wait_ms: int) -> object:
        try:
            return wait(events, wait_ms)
        except pynvml.NVMLError_GpuIsLost:
            failed.set()
            raise

    monkeypatch.setattr(pynvml, "nvmlEventSetWait_v2", noted)
    with watched(*cards()) as heard:
        fake.change(0, error=GPU_IS_LOST)
        assert failed.wait(WITHIN_S)
        fake.change(0, error=0)
        fake.tell_xid(0, 63)
        assert heard() == (fake.uuids[0], 63)


def test_cards_that_tell_no_xids_are_left_alone(make: MakeNvml) -> None:
    fake = make(card(0, xids=-1), card(1))
    known = cards()
    fake.change(1, late_error=GPU_IS_LOST)
    with watched(*known):
        until(lambda: not watching(), within_s=WITHIN_S, what="no thread waits for them")
