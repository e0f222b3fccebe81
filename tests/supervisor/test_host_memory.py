"""One copy of a component's bytes for several processes, whichever of them is killed, under a budget."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl import memory_wire as wire
from falctl.board.rows import MemoryRow
from falctl.supervisor import datagrams
from tests.supervisor.memory_server import STEP_S, MemoryServer
from tests.wait import until

MB = 1 << 20


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with MemoryServer(64 * MB) as made:
        yield made


class Peer:
    """A runner's end of its channel, by hand."""

    def __init__(self, server: MemoryServer, runner: int) -> None:
        self.server = server
        self.holder, self.socket = server.connect(runner)
        self.socket.settimeout(STEP_S)
        self.fd = -1

    def send(self, *messages: wire.Message) -> None:
        for message in messages:
            self.socket.send(wire.encode(message))

    def hear(self) -> wire.Message:
        datagram, fds, _, _ = socket.recv_fds(self.socket, wire.DATAGRAM_BYTES_MAX, 1)
        if fds:
            self.close_memory()
            (self.fd,) = fds
        return wire.decode(datagram)

    def close_memory(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self.close_memory()
        self.socket.close()


@pytest.fixture
def peers(server: MemoryServer) -> Iterator[tuple[Peer, Peer]]:
    pair = Peer(server, 0), Peer(server, 1)
    yield pair
    for peer in pair:
        peer.close()


def seal_one(peer: Peer, *, nbytes: int = MB) -> int:
    peer.send(wire.Obtain(1, "unet", nbytes))
    given = peer.hear()
    assert isinstance(given, wire.Given)
    peer.send(wire.Seal(given.block))
    return given.block


@pytest.mark.process
def test_two_processes_have_one_copy(server: MemoryServer) -> None:
    first, second = server.start(0), server.start(1)
    assert first.ask("obtain", "unet", 8 * MB) == "fill"
    assert first.ask("write", 3) == "written"
    second.tell("obtain", "unet", 8 * MB)
    until(lambda: server.row.waiting == 1, within_s=STEP_S, what="the second waits")
    assert first.ask("seal") == "sealed"
    assert second.hear() == "filled"
    assert second.ask("read") == str(3 * 8 * MB)
    assert server.row == MemoryRow(64 * MB, held_bytes=8 * MB, used_bytes=8 * MB, blocks=1, waiting=0)
    for runner in (first, second):
        rss_kib, pss_kib = map(int, runner.ask("maps").split())
        assert (rss_kib, pss_kib) == (8 * MB >> 10, 4 * MB >> 10), "the pages of one are those of the other"


@pytest.mark.process
def test_when_the_filler_is_killed_who_waits_fills(server: MemoryServer) -> None:
    first, second = server.start(0), server.start(1)
    assert first.ask("obtain", "unet", 8 * MB) == "fill"
    assert first.ask("write", 3) == "written"
    second.tell("obtain", "unet", 8 * MB)
    until(lambda: server.row.waiting == 1, within_s=STEP_S, what="the second waits")
    first.kill()
    assert second.hear() == "fill"
    assert second.ask("read") == "0", "nothing is left of what the dead one wrote"
    assert server.row.held_bytes == 8 * MB


@pytest.mark.process
def test_what_a_killed_runner_held_is_found_by_its_successor_and_leaks_nothing(server: MemoryServer) -> None:
    first = server.start(0)
    first.ask("obtain", "unet", 8 * MB)
    first.ask("write", 5)
    first.ask("seal")
    first.ask("obtain", "vae", 8 * MB)
    first.kill()
    assert server.row == MemoryRow(64 * MB, held_bytes=8 * MB, used_bytes=0, blocks=1, waiting=0)
    again = server.start(0)
    assert again.ask("obtain", "unet", 8 * MB) == "filled"
    assert again.ask("read") == str(5 * 8 * MB)
    again.kill()
    server.close_memory()
    assert shared_kib(os.getpid()) == 0


@pytest.mark.process
def test_memory_is_given_back_beside_the_loop(server: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = server.start(0)
    runner.ask("obtain", "unet", 8 * MB)
    runner.ask("seal")
    runner.kill()
    [fd], closed_by, close = server.memory._fds.values(), [], os.close

    def watched(number: int) -> None:
        if number == fd:
            closed_by.append(threading.current_thread())
        close(number)

    monkeypatch.setattr(os, "close", watched)
    server.close_memory()
    loop = server.call(lambda _: threading.current_thread())
    assert len(closed_by) == 1
    assert closed_by != [loop], "which would stand still for 0.1 s a GB"


@pytest.mark.process
@pytest.mark.parametrize("by", ["its filler", "another"])
def test_to_write_to_what_is_sealed_is_the_end_of_who_does_it(server: MemoryServer, by: str) -> None:
    first, second = server.start(0), server.start(1)
    first.ask("obtain", "unet", MB)
    first.ask("write", 1)
    first.ask("seal")
    assert second.ask("obtain", "unet", MB) == "filled"
    wrong, right = (first, second) if by == "its filler" else (second, first)
    assert wrong.ask("scribble") == ""
    assert wrong.bury() == -signal.SIGSEGV
    assert right.ask("read") == str(MB), "nobody else's model has changed"


@pytest.mark.process
def test_a_full_budget_is_told_with_its_numbers(server: MemoryServer) -> None:
    first, second = server.start(0), server.start(1)
    assert first.ask("obtain", "unet", 48 * MB) == "fill"
    refused = second.ask("obtain", "transformer", 32 * MB)
    assert refused == (
        f"HostMemoryFullError: no host memory for {32 * MB} bytes: of the {64 * MB} that all runners share "
        f"{48 * MB} are in use by runner 0; raise cache.host_memory"
    )
    first.ask("seal")
    first.ask("release")
    server.wait_used(0)
    assert second.ask("obtain", "transformer", 32 * MB) == "fill"
    assert max(row.held_bytes for row in server.rows) <= 64 * MB


def test_what_is_sealed_can_be_neither_written_nor_resized(peers: tuple[Peer, Peer]) -> None:
    first, second = peers
    seal_one(first)
    second.send(wire.Obtain(7, "unet", MB))
    assert second.hear() == wire.Given(7, 1, filled=True)
    for change in (
        lambda: os.pwrite(second.fd, b"x", 0),
        lambda: os.ftruncate(second.fd, 0),
        lambda: os.ftruncate(second.fd, 2 * MB),
        lambda: mmap.mmap(second.fd, MB, access=mmap.ACCESS_WRITE),
    ):
        with pytest.raises(PermissionError):
            change()


def test_before_it_is_sealed_its_size_is_fixed(peers: tuple[Peer, Peer]) -> None:
    first, _ = peers
    first.send(wire.Obtain(1, "unet", MB))
    assert first.hear() == wire.Given(1, 1, filled=False)
    assert os.fstat(first.fd).st_size == MB
    os.pwrite(first.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(first.fd, 0)


def test_both_have_the_same_memory(peers: tuple[Peer, Peer]) -> None:
    first, second = peers
    seal_one(first)
    second.send(wire.Obtain(7, "unet", MB))
    second.hear()
    assert os.fstat(first.fd).st_ino == os.fstat(second.fd).st_ino


def test_the_memory_of_a_dropped_block_is_free_before_another_is_given(peers: tuple[Peer, Peer]) -> None:
    first, second = peers
    block = seal_one(first, nbytes=40 * MB)
    os.posix_fallocate(first.fd, 0, 40 * MB)
    first.close_memory()
    first.send(wire.LetGo(block))
    before_kib = shmem_kib()
    second.send(wire.Obtain(1, "other", 40 * MB))
    assert isinstance(second.hear(), wire.Given)
    assert before_kib - shmem_kib() > 30 << 10


def test_a_runner_that_does_not_read_gets_its_answers_later(
    server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "WAITING_MAX", 1000)
    slow = Peer(server, 0)
    block = seal_one(slow)
    questions = 900
    asking = threading.Thread(
        target=lambda: slow.send(*(wire.Obtain(10 + n, "unet", MB) for n in range(questions)))
    )
    asking.start()
    until(lambda: server.row.blocks == 1, within_s=STEP_S, what="the others are heard meanwhile")
    answers = [slow.hear() for _ in range(questions)]
    assert answers == [wire.Given(10 + n, block, filled=True) for n in range(questions)]
    asking.join(STEP_S)
    slow.close()


def test_a_runner_that_never_reads_is_given_up_and_others_are_served(server: MemoryServer) -> None:
    deaf, other = Peer(server, 0), Peer(server, 1)
    seal_one(deaf)
    with pytest.raises(ConnectionError):
        deaf.send(*(wire.Obtain(number, "unet", MB) for number in range(10_000)))
    other.send(wire.Obtain(1, "unet", MB))
    assert isinstance(other.hear(), wire.Given)
    deaf.close()
    other.close()


def test_nonsense_is_not_answered_and_does_not_matter(
    peers: tuple[Peer, Peer], caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = peers
    first.socket.send(b"\xff")
    first.socket.send(b'{"kind": "Obtain", "number": 1, "key": "unet", "nbytes": -1}')
    first.send(wire.Refused(1, "I say so", 0), wire.Seal(99))
    seal_one(first)
    assert [line.split()[0] for line in caplog.messages] == [
        "memory.unknown",
        "memory.unknown",
        "memory.unexpected",
    ]


def test_where_the_kernel_gives_no_memory_the_runner_is_told_and_nothing_is_held(
    peers: tuple[Peer, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    first, _ = peers
    monkeypatch.setattr(os, "memfd_create", no_more)
    first.send(wire.Obtain(1, "unet", MB))
    answer = first.hear()
    assert answer == wire.Refused(
        1, f"the kernel gives no {MB} bytes of shared memory: Too many open files", 0
    )
    until(lambda: first.server.row.held_bytes == 0, within_s=STEP_S, what="nothing is held")


def test_what_no_runner_uses_leaves_after_a_while() -> None:
    with MemoryServer(64 * MB, keep_alive_s=0.0) as server:
        peer = Peer(server, 0)
        peer.send(wire.LetGo(seal_one(peer)))
        server.wait_used(0)
        assert server.row.held_bytes == MB
        server.call(lambda memory: memory.tick(lambda: 0))
        assert server.row.held_bytes == 0
        peer.close()


def test_what_no_runner_uses_gives_way_when_the_machine_is_short_of_memory(peers: tuple[Peer, Peer]) -> None:
    first, _ = peers
    server = first.server
    block = seal_one(first)
    server.call(lambda memory: memory.tick(lambda: 1))
    assert server.row.held_bytes == MB, "it is in use"
    first.send(wire.LetGo(block))
    server.wait_used(0)
    server.call(lambda memory: memory.tick(lambda: 0))
    assert server.row.held_bytes == MB, "nobody needs the room"
    server.call(lambda memory: memory.tick(lambda: 1))
    assert server.row.held_bytes == 0


def test_nobody_looks_for_a_shortage_that_could_not_be_relieved(server: MemoryServer) -> None:
    def must_not_be_called() -> int:
        raise AssertionError

    server.call(lambda memory: memory.tick(must_not_be_called))


def shmem_kib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))


def shared_kib(pid: int) -> int:
    """Return how much of a block a process has open, in KiB."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "falctl-weights" in str(link.readlink()):
                found += link.stat().st_blocks // 2
        except OSError:
            continue
    return found
