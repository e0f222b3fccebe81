"""Host memory of one process: one copy for all who ask, a budget, and nobody who waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from falctl.host.cache.host_memory import HostMemoryFullError
from falctl.host.cache.private_memory import PrivateMemory
from falctl.host.cache.stopping import LoadCancelledError

WAIT_S = 60.0


def test_the_second_gets_what_the_first_has_filled() -> None:
    memory = PrivateMemory()
    first = memory.obtain("a", 8)
    assert not first.filled
    first.flat.fill_(7)
    first.seal()
    second = memory.obtain("a", 8)
    assert second.filled
    assert second.flat.data_ptr() == first.flat.data_ptr()
    assert memory.used_bytes == 8
    first.release()
    first.release()
    assert (memory.used_bytes, second.flat.tolist()) == (8, [7] * 8)
    second.release()
    assert memory.used_bytes == 0
    assert not memory.obtain("a", 8).filled


@pytest.mark.parametrize("filled", [True, False])
def test_who_asks_while_another_fills_waits_and_fills_if_that_one_gives_up(*, filled: bool) -> None:
    memory = PrivateMemory()
    first = memory.obtain("a", 8)
    asking = threading.Event()

    def ask() -> bool:
        asking.set()
        return memory.obtain("a", 8).filled

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(ask)
        assert asking.wait(WAIT_S)
        other = memory.obtain("b", 8)  # waits for nobody
        assert not second.done()
        if filled:
            first.seal()
        first.release()
        assert second.result(WAIT_S) is False if not filled else True
    other.release()
    assert memory.used_bytes in {0, 8}


def test_who_is_cancelled_waits_no_more_and_the_other_goes_on() -> None:
    memory, cancelled = PrivateMemory(), threading.Event()
    first = memory.obtain("a", 8)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(memory.obtain, "a", 8, cancelled=cancelled)
        cancelled.set()
        with pytest.raises(LoadCancelledError):
            second.result(WAIT_S)
    first.seal()
    first.release()
    assert memory.used_bytes == 0


def test_the_budget_is_a_limit_and_what_was_released_can_be_had_again() -> None:
    memory = PrivateMemory(10)
    one = memory.obtain("a", 6)
    with pytest.raises(HostMemoryFullError, match="5 bytes of host memory are needed, 4 of 10 are free"):
        memory.obtain("b", 5)
    assert memory.used_bytes == 6
    one.release()
    memory.obtain("b", 10).release()


def test_what_the_kernel_refuses_is_full_memory() -> None:
    with pytest.raises(HostMemoryFullError, match="the kernel refused"):
        PrivateMemory().obtain("a", 1 << 60)
