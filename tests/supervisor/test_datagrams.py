"""One end of a channel of datagrams: what cannot be sent now is sent later, with its descriptors; a loss is an end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.supervisor import datagrams
from falctl.supervisor.datagrams import Datagrams

BYTES_MAX = 1 << 12
DEADLINE_S = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(DEADLINE_S)
    yield ours, theirs
    ours.close()
    theirs.close()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def pass_the_loop() -> None:
    """Let everything that is ready on the loop happen."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_descriptor_that_waits_is_a_copy(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    async def history() -> None:
        ours, theirs = ends
        channel = Datagrams(ours, lambda _: None, bytes_max=BYTES_MAX)
        sent = 0
        while not channel._waiting:
            channel.send(b"x" * 1000)
            sent += 1
        with (tmp_path / "memory").open("w") as file:
            inode = os.fstat(file.fileno()).st_ino
            theirs.recv(BYTES_MAX)  # now there is room for it, but others were before it
            channel.send(b"last", file.fileno())
        held = descriptors()
        for _ in range(sent - 1):
            assert await asyncio.to_thread(theirs.recv, BYTES_MAX) == b"x" * 1000
        datagram, fds, _, _ = await asyncio.to_thread(socket.recv_fds, theirs, BYTES_MAX, 1)
        assert (datagram, os.fstat(fds[0]).st_ino) == (b"last", inode)
        os.close(fds[0])
        await pass_the_loop()
        assert not channel._waiting
        assert descriptors() == held - 1
        assert not asyncio.get_running_loop().remove_writer(ours), "nobody waits for room any more"
        channel.close()

    asyncio.run(asyncio.wait_for(history(), DEADLINE_S))


def test_a_channel_that_is_closed_gives_back_what_waits_and_sends_nothing(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    async def history() -> None:
        ours, theirs = ends
        channel = Datagrams(ours, lambda _: None, bytes_max=BYTES_MAX)
        with (tmp_path / "memory").open("w") as file:
            before = descriptors()
            while len(channel._waiting) < 3:
                channel.send(b"x" * 1000, file.fileno())
            channel.close()
            channel.close()
            channel.send(b"more", file.fileno())
            assert descriptors() == before - 1, "the copies, and our end"
        theirs.close()

    asyncio.run(asyncio.wait_for(history(), DEADLINE_S))


def test_who_waits_for_what_cannot_be_sent_sees_the_end(
    ends: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    async def history() -> None:
        ours, theirs = ends
        channel = Datagrams(ours, lambda _: None, bytes_max=BYTES_MAX)
        channel.send(b"an answer", 987_654)  # no descriptor of ours, so that the kernel refuses
        assert theirs.recv(BYTES_MAX) == b""
        channel.send(b"more")

    asyncio.run(asyncio.wait_for(history(), DEADLINE_S))
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.message for record in warnings] == ["datagrams.given_up [Errno 9] Bad file descriptor"]


def test_who_waits_for_what_cannot_be_sent_later_sees_the_end(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    async def history() -> None:
        ours, theirs = ends
        channel = Datagrams(ours, lambda _: None, bytes_max=BYTES_MAX)
        sent = 0
        while not channel._waiting:
            channel.send(b"x" * 1000)
            sent += 1
        channel._waiting.append((b"x" * (8 << 20), ()))  # more than any socket takes
        for _ in range(sent):
            assert await asyncio.to_thread(theirs.recv, BYTES_MAX)
        assert await asyncio.to_thread(theirs.recv, BYTES_MAX) == b""
        assert not channel._waiting

    asyncio.run(asyncio.wait_for(history(), DEADLINE_S))


def test_one_who_sends_much_does_not_keep_the_loop(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "READS_MAX", 2)

    async def history() -> None:
        ours, theirs = ends
        heard: list[bytes] = []
        for number in range(5):
            theirs.send(b"%d" % number)
        channel = Datagrams(ours, heard.append, bytes_max=BYTES_MAX)
        rounds = []
        while len(heard) < 5:
            await asyncio.sleep(0)
            rounds.append(len(heard))
        assert [count for count in dict.fromkeys(rounds) if count] == [2, 4, 5]
        channel.close()

    asyncio.run(asyncio.wait_for(history(), DEADLINE_S))


def test_a_listener_may_close_the_channel(ends: tuple[socket.socket, socket.socket]) -> None:
    async def history() -> None:
        ours, theirs = ends
        heard: list[bytes] = []

        def hear(datagram: bytes) -> None:
            heard.append(datagram)
            channel.close()

        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        theirs.send(b"one")
        theirs.send(b"two")
        channel = Datagrams(ours, hear, bytes_max=BYTES_MAX)
        await pass_the_loop()
        assert (heard, errors) == ([b"one"], [])

    asyncio.run(asyncio.wait_for(history(), DEADLINE_S))
