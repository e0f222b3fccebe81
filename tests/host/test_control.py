"""A message of a child goes to its supervisor whole or not at all."""

from __future__ import annotations

import socket

import pytest

from falctl import lifeline
from falctl.config import Config
from falctl.lines import LineSplitter
from falctl.wire import Drained, RouterSpec, Stage, decode, encode

TEXT = "x" * 60_000


def read(channel: socket.socket) -> bytes:
    """Return what lies in *channel* now."""
    chunks = []
    try:
        while chunk := channel.recv(1 << 16, socket.MSG_DONTWAIT):
            chunks.append(chunk)
    except BlockingIOError:
        pass
    return b"".join(chunks)


def test_a_line_that_finds_no_room_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode(RouterSpec(1, "", "", "", Config().model_dump(mode="json"))))
        monkeypatch.setenv(lifeline.ENV_BOARD, "0")
        control = lifeline.Control(theirs, lambda: None)
        for _ in range(6):  # the kernel keeps about 200 KiB, so one of them goes in part
            control.send(Stage(TEXT))
        lines = LineSplitter()
        came = [decode(line) for line in lines.feed(read(ours))]
        control.send(Drained())
        came += [decode(line) for line in lines.feed(read(ours))]
        ours.shutdown(socket.SHUT_RDWR)  # ends the reading thread of `control`
    assert 1 < len(came) < 7
    assert came == [*[Stage(TEXT)] * (len(came) - 1), Drained()]
