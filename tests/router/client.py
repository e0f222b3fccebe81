"""HTTP clients for tests: one that is kind, and one that sends exactly the bytes it is told to."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from dataclasses import dataclass
from typing import Any

from falctl.clock import monotonic_s
from tests.router.fake_host import PATIENCE_S
from tests.router.harness import Setup


@dataclass(frozen=True)
class Reply:
    """An answer read to its end."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def value(self, name: str) -> str | None:
        return next(iter(self.values(name)), None)

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    setup: Setup,
    method: str = "POST",
    path: str = "/",
    *,
    body: bytes | None = None,
    headers: dict[str, Any] | None = None,
) -> Reply:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", setup.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return Reply(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


class Raw:
    """A TCP connection to the router."""

    def __init__(self, setup: Setup, sent: bytes = b"", *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", setup.port))
        self.send(sent)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_until_cut_off(self, piece: bytes, *, within_s: float, pause_s: float = 0.0) -> int:
        """Send *piece* again and again until the connection breaks; return how many bytes that took."""
        deadline_at = monotonic_s() + within_s
        sent = 0
        while monotonic_s() < deadline_at:
            try:
                self.send(piece)
            except ConnectionError:
                return sent
            sent += len(piece)
            threading.Event().wait(pause_s)
        msg = f"not cut off within {within_s} s"
        raise AssertionError(msg)

    def read_until(self, mark: bytes) -> bytes:
        """Return everything up to and with *mark*."""
        found = b""
        while not found.endswith(mark):
            chunk = self.socket.recv(1)
            assert chunk, f"the connection ended before {mark!r}: {found!r}"
            found += chunk
        return found

    def read_all(self) -> bytes:
        """Return everything until the other side closes."""
        chunks = []
        while chunk := self.socket.recv(1 << 16):
            chunks.append(chunk)
        return b"".join(chunks)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request_bytes(path: str = "/", *extra: bytes, method: str = "POST", body: bytes = b"") -> bytes:
    """Return a request with a good Host header and the header lines *extra*."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: localhost", *extra]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


class Later:
    """Requests sent from threads; their replies in the order in which they came."""

    def __init__(self) -> None:
        self.replies: list[Reply | Exception] = []
        self._threads: list[threading.Thread] = []

    def ask(self, setup: Setup, *args: Any, **options: Any) -> None:
        def run() -> None:
            try:
                self.replies.append(ask(setup, *args, **options))
            except (OSError, http.client.HTTPException) as error:
                self.replies.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def all(self) -> list[Any]:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a client waits for ever"
        return self.replies
