"""Clients that go on posting until they are told to stop, and remember how each request ended."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.process.harness import REQUEST_S, Falctl, Reply

BROKEN: Final = 0
"""Stands for a status where the connection broke instead of an answer."""


@dataclass
class Load:
    """What the clients have sent and got; ``sent`` counts before, ``replies`` after."""

    f: Falctl
    make: Callable[[int], tuple[str, dict[str, Any], dict[str, str]]]
    """Path, body and headers of the request with that number."""
    sent: int = 0
    replies: list[tuple[int, Reply | None]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def statuses(self) -> Counter[int]:
        """How many requests ended in each status, `BROKEN` among them."""
        with self._lock:
            return Counter(reply.status if reply is not None else BROKEN for _, reply in self.replies)

    def of(self, status: int) -> list[Reply]:
        with self._lock:
            return [reply for _, reply in self.replies if reply is not None and reply.status == status]

    def answered(self) -> int:
        with self._lock:
            return len(self.replies)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
                self.sent += 1
            reply = self._ask(number)
            with self._lock:
                self.replies.append((number, reply))

    def _ask(self, number: int) -> Reply | None:
        path, body, headers = self.make(number)
        try:
            return self.f.post(path, body, headers=headers)
        except (http.client.HTTPException, ConnectionError):
            return None


@contextmanager
def load(
    f: Falctl, make: Callable[[int], tuple[str, dict[str, Any], dict[str, str]]], *, clients: int = 8
) -> Iterator[Load]:
    """Post from *clients* threads while the block runs; at its end every request has been answered or has failed."""
    one = Load(f, make)
    threads = [threading.Thread(target=one._run, name=f"client {i}", daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield one
    finally:
        one._stop.set()
        for thread in threads:
            thread.join(REQUEST_S)
    assert not any(thread.is_alive() for thread in threads), "a client still waits for its answer"


class Background:
    """One request under way. ``reply`` is None until it is answered, and after a broken connection."""

    def __init__(self, ask: Callable[[], Reply]) -> None:
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self._ask = ask
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self, *, within_s: float = REQUEST_S) -> Reply | None:
        """Wait for its end; None: the connection broke."""
        self._thread.join(max(within_s, REQUEST_S))
        assert not self._thread.is_alive(), "still waits for its answer"
        if self.error is not None and not isinstance(self.error, http.client.HTTPException | ConnectionError):
            raise self.error
        return self.reply

    @property
    def pending(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.reply = self._ask()
        except Exception as error:  # noqa: BLE001 - handed to the thread that asks for the result
            self.error = error
