"""A runner's side of the shared host memory: when it waits, what it maps, and when it lets go."""

from __future__ import annotations

import errno
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from falctl import memory_wire as wire
from falctl.core.host_memory import Holder
from falctl.host.cache import mapping
from falctl.host.cache.host_memory import HostMemory, HostMemoryFullError
from falctl.host.cache.shared_memory import HostMemoryLostError, SharedBlock, SharedMemory
from falctl.host.cache.stopping import LoadCancelledError
from tests.supervisor.memory_server import STEP_S, MemoryServer
from tests.wait import until

MB = 1 << 20


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with MemoryServer(64 * MB) as made:
        yield made


@pytest.fixture
def memory(server: MemoryServer) -> Iterator[SharedMemory]:
    with_channel = connected(server, 0)
    yield with_channel
    with_channel.close()


def connected(server: MemoryServer, runner: int, *, patience_s: float = STEP_S) -> SharedMemory:
    return SharedMemory(server.connect(runner)[1], patience_s=patience_s)


def obtained(memory: SharedMemory, key: str, nbytes: int = MB) -> SharedBlock:
    block = memory.obtain(key, nbytes)
    assert isinstance(block, SharedBlock)
    return block


def filled(memory: SharedMemory, key: str, nbytes: int = MB) -> SharedBlock:
    block = obtained(memory, key, nbytes)
    assert not block.filled
    block.flat.fill_(7)
    block.seal()
    return block


def test_it_is_a_host_memory(memory: SharedMemory) -> None:
    as_protocol: HostMemory = memory
    block = as_protocol.obtain("unet", MB)
    assert (block.filled, block.flat.shape, block.flat.dtype) == (False, (MB,), torch.uint8)


def test_a_block_is_page_aligned_and_zero_at_first(memory: SharedMemory) -> None:
    block = obtained(memory, "unet", MB + 1)
    assert block.flat.data_ptr() % 4096 == 0
    assert block.flat.numel() == MB + 1
    assert not block.flat.any()


def test_views_from_before_the_seal_stay_valid(memory: SharedMemory) -> None:
    block = obtained(memory, "unet")
    weight = block.flat[512 : 512 + 64].view(torch.float32)
    weight.fill_(0.5)
    block.seal()
    assert block.filled
    assert weight.tolist() == [0.5] * 16
    assert block.flat.data_ptr() + 512 == weight.data_ptr()


def test_another_runner_sees_the_bytes_and_torch_does_not_warn(
    server: MemoryServer, memory: SharedMemory
) -> None:
    filled(memory, "unet")
    other = connected(server, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = obtained(other, "unet")
    assert block.filled
    assert block.flat.eq(7).all()
    block.release()
    other.close()


def test_weights_are_left_out_of_core_files(memory: SharedMemory) -> None:
    block = filled(memory, "unet")
    start = f"{block.mapping.address:x}-"
    described = Path("/proc/self/smaps").read_text().partition(f"\n{start}")[2]
    flags = next(line for line in described.splitlines() if line.startswith("VmFlags:"))
    assert "dd" in flags.split()


def test_a_block_without_bytes_is_nobodys(server: MemoryServer, memory: SharedMemory) -> None:
    block = memory.obtain("activation", 0)
    assert (block.filled, block.flat.numel()) == (True, 0)
    block.seal()
    block.release()
    assert server.rows == []


def test_a_reference_ends_with_the_last_view_and_not_before(
    server: MemoryServer, memory: SharedMemory
) -> None:
    block = filled(memory, "unet")
    view = block.flat[100:200]
    block.release()
    block.release()
    filled(memory, "vae").release()  # heard after the release of the first
    server.wait_used(MB)
    assert view.eq(7).all()
    del view
    server.wait_used(0)


def test_a_block_costs_no_descriptor(server: MemoryServer, memory: SharedMemory) -> None:
    before = descriptors()
    blocks = [filled(memory, str(number), 4096) for number in range(5)]
    assert obtained(memory, "0", 4096).filled
    assert descriptors() - before == len(blocks), "one each, and those are the supervisor's"


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_block_that_was_released_has_no_bytes(memory: SharedMemory) -> None:
    block = filled(memory, "unet")
    block.release()
    with pytest.raises(AssertionError, match="released"):
        _ = block.flat


def test_a_block_that_is_only_dropped_is_let_go(server: MemoryServer, memory: SharedMemory) -> None:
    block = filled(memory, "unet")
    cycle = [block.flat]
    cycle.append(cycle)
    del block, cycle
    gc.collect()
    server.wait_used(0)


def test_a_finaliser_may_run_inside_of_a_message(server: MemoryServer, memory: SharedMemory) -> None:
    class Collected:
        def __init__(self, view: torch.Tensor) -> None:
            self.view, self.me = view, self

    for number in range(50):
        Collected(filled(memory, f"c{number}", 4096).flat)
        gc.collect(0)
    server.wait_used(0)


def test_who_waits_for_what_is_given_up_fills_it(server: MemoryServer, memory: SharedMemory) -> None:
    other = connected(server, 1)
    block = obtained(memory, "unet")
    view = block.flat
    got: list[SharedBlock] = []
    waiting = threading.Thread(target=lambda: got.append(obtained(other, "unet")))
    waiting.start()
    until(lambda: server.row.waiting == 1, within_s=STEP_S, what="the other waits")
    block.release()
    waiting.join(STEP_S)
    assert not got[0].filled, "at once, though the first has a view still"
    assert server.row.held_bytes == 2 * MB, "which counts"
    del view
    server.wait_used(MB)
    got.clear()
    server.wait_used(0)
    other.close()


def test_a_second_thread_of_a_runner_waits_for_the_first(server: MemoryServer, memory: SharedMemory) -> None:
    block = obtained(memory, "unet")
    got: list[SharedBlock] = []
    waiting = threading.Thread(target=lambda: got.append(obtained(memory, "unet")))
    waiting.start()
    until(lambda: server.row.waiting == 1, within_s=STEP_S, what="the second thread waits")
    block.flat.fill_(9)
    block.seal()
    waiting.join(STEP_S)
    assert got[0].filled
    assert got[0].flat.eq(9).all()


def test_more_than_the_budget_is_an_error_with_the_numbers(
    server: MemoryServer, memory: SharedMemory
) -> None:
    with pytest.raises(
        HostMemoryFullError, match=rf"for {65 * MB} bytes: of the {64 * MB} .* nothing is in use"
    ):
        memory.obtain("transformer", 65 * MB)
    assert server.row.held_bytes == 0


def test_the_error_says_how_much_would_have_to_go(memory: SharedMemory) -> None:
    block = filled(memory, "unet", 60 * MB)
    with pytest.raises(HostMemoryFullError) as caught:
        memory.obtain("vae", 6 * MB)
    assert caught.value.lacking_bytes == 2 * MB
    block.release()
    assert not obtained(memory, "vae", 6 * MB).filled, "what was let go of before is heard before"


def test_where_the_kernel_has_no_pages_nothing_is_held(
    server: MemoryServer, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(fd: int, start: int, nbytes: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "posix_fallocate", no_more)
    with pytest.raises(HostMemoryFullError, match=f"for {MB} bytes, .*Cannot allocate memory"):
        memory.obtain("unet", MB)
    until(lambda: server.row.held_bytes == 0, within_s=STEP_S, what="nothing is held")
    monkeypatch.undo()
    assert not obtained(memory, "unet").filled


def test_where_there_is_no_address_space_nothing_is_held(
    server: MemoryServer, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "_MAP_SHARED", 0)  # neither shared nor private: EINVAL
    with pytest.raises(HostMemoryFullError, match="cannot map"):
        memory.obtain("unet", MB)
    until(lambda: server.row.held_bytes == 0, within_s=STEP_S, what="nothing is held")


def test_who_has_waited_for_too_long_is_told_and_a_late_answer_is_given_back(
    server: MemoryServer, memory: SharedMemory
) -> None:
    hasty = connected(server, 1, patience_s=0.01)
    block = obtained(memory, "unet")
    with pytest.raises(HostMemoryLostError, match=r"has been filling unet for 0\.01 s"):
        hasty.obtain("unet", MB)
    block.seal()
    block.release()
    server.wait_used(0)
    hasty.close()


def cancelled_while_it_waits(server: MemoryServer, memory: HostMemory) -> None:
    """Have *memory* wait for the block "unet", and stop waiting."""
    cancelled, errors = threading.Event(), list[str]()

    def wait() -> None:
        try:
            memory.obtain("unet", MB, cancelled=cancelled)
        except LoadCancelledError as error:
            errors.append(type(error).__name__)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: server.row.waiting == 1, within_s=STEP_S, what="it waits")
    cancelled.set()
    waiting.join(STEP_S)
    assert errors == ["LoadCancelledError"]


def test_who_is_cancelled_while_another_fills_gives_its_place_up_and_the_other_goes_on(
    server: MemoryServer, memory: SharedMemory
) -> None:
    block, other = obtained(memory, "unet"), connected(server, 1)
    cancelled_while_it_waits(server, other)
    until(lambda: server.row.waiting == 0, within_s=STEP_S, what="its place is given up")
    block.flat.fill_(7)
    block.seal()
    assert obtained(other, "unet").flat.eq(7).all()
    server.wait_used(MB)
    block.release()
    other.close()


def test_an_answer_that_crosses_with_a_cancellation_is_given_back(
    server: MemoryServer, memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, other = obtained(memory, "unet"), connected(server, 1)
    monkeypatch.setattr(server.memory, "_hear", unheard(server.memory._hear, wire.Withdraw))
    cancelled_while_it_waits(server, other)
    block.release()
    server.wait_used(0)
    assert server.row.waiting == 0
    assert not obtained(memory, "unet").filled
    other.close()


def test_an_answer_that_is_being_taken_when_it_is_cancelled_counts(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(number: int) -> bool:
        until(lambda: number not in memory._questions, within_s=STEP_S, what="the answer is taken")
        return False

    cancelled = threading.Event()
    cancelled.set()
    monkeypatch.setattr(memory, "_withdrawn", too_late)
    assert not memory.obtain("unet", MB, cancelled=cancelled).filled


def unheard(
    hear: Callable[[Holder, bytes], None], kind: type[wire.Message]
) -> Callable[[Holder, bytes], None]:
    """Return *hear* that is deaf for messages of *kind*."""

    def deaf(holder: Holder, datagram: bytes) -> None:
        if not isinstance(wire.decode(datagram), kind):
            hear(holder, datagram)

    return deaf


def test_when_the_supervisor_goes_who_waits_and_who_asks_is_told(
    server: MemoryServer, memory: SharedMemory
) -> None:
    obtained_block = obtained(memory, "unet")
    errors: list[Exception] = []

    def wait() -> None:
        try:
            memory.obtain("unet", MB)
        except HostMemoryLostError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: server.row.waiting == 1, within_s=STEP_S, what="the second thread waits")
    server.close_memory()
    waiting.join(STEP_S)
    assert len(errors) == 1
    with pytest.raises(HostMemoryLostError, match="supervisor"):
        memory.obtain("vae", MB)
    obtained_block.flat.fill_(1)  # what is mapped stays


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kind": "Seal"}',
        b'{"kind": "Seal", "block": "1"}',
        b'{"kind": "Seal", "block": true}',
        b'{"kind": "Seal", "block": -1}',
        b'{"kind": "Nonsense", "block": 1}',
        b"\xff",
    ],
)
def test_what_is_no_message_is_a_value_error(datagram: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.decode(datagram)


@pytest.mark.parametrize(
    "message",
    [
        wire.Obtain(1, "\U0010ffff" * wire.KEY_CHARACTERS_MAX, 1 << 50),
        wire.Withdraw(1),
        wire.Seal(1),
        wire.Abandon(2),
        wire.LetGo(3),
        wire.Given(1, 2, filled=True),
        wire.Refused(1, "no room", 3),
    ],
)
def test_a_message_comes_back_equal_and_fits_a_datagram(message: wire.Message) -> None:
    datagram = wire.encode(message)
    assert len(datagram) <= wire.DATAGRAM_BYTES_MAX
    assert wire.decode(datagram) == message
