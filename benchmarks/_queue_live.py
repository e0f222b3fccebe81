"""The durable queue of a whole `falctl up`, as a client with one connection meets it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from falctl.clock import monotonic_s

ROOM: Final = "/queue/me/app"
_POLL_S: Final = 0.05
"""Long enough that asking does not slow down what is asked for."""
_PATIENCE_S: Final = 60.0
_FILLERS: Final = 16


class Client:
    """One kept connection to one falctl."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_PATIENCE_S)

    def ask(self, method: str, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and body of the answer; blocks for it."""
        body = b"{}" if method == "POST" else None
        self._connection.request(method, path, body, {"content-type": "application/json"})
        reply = self._connection.getresponse()
        return reply.status, json.loads(reply.read())

    def submit(self, path: str = "") -> str:
        """Hand in a job; return its path."""
        status, told = self.ask("POST", ROOM + path)
        assert status == 200, told
        return f"{ROOM}/requests/{told['request_id']}"

    def started_s(self, *, queued: bool) -> float:
        """Return how long after it was sent a request entered the app, and wait for its end."""
        sent_at = monotonic_s()
        if not queued:
            return float(self.ask("POST", "/")[1]["began_at"]) - sent_at
        job = self.submit()
        _pause()
        while (found := self.ask("GET", job))[0] == 400:
            _pause()
        return float(found[1]["began_at"]) - sent_at

    def hold(self) -> None:
        """Have the one slot taken for good."""
        job = self.submit("/hold")
        while self.ask("GET", f"{job}/status")[1]["status"] != "IN_PROGRESS":
            _pause()

    def fill(self, jobs: int) -> None:
        """Let so many wait, handed in by several clients at once."""

        def some(_: int) -> None:
            client = Client(self.url)
            for _ in range(jobs // _FILLERS):
                client.submit()

        with ThreadPoolExecutor(_FILLERS) as fillers:
            list(fillers.map(some, range(_FILLERS)))
        for _ in range(jobs % _FILLERS):
            self.submit()

    def times(self) -> tuple[float, float]:
        """Return how long a submission took, and the status of that job; then take it back."""
        took, job = timed(self.submit)
        asked, (_, told) = timed(lambda: self.ask("GET", f"{job}/status"))
        assert told["status"] == "IN_QUEUE", told
        self.ask("PUT", f"{job}/cancel")
        return took, asked


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds *call* took, and what it returned."""
    began_at = monotonic_s()
    value = call()
    return monotonic_s() - began_at, value


@contextmanager
def falctl(home: Path) -> Iterator[Client]:
    """Give a client of a falctl with one CPU runner whose state is in *home*."""
    home.mkdir()
    environ = {**os.environ, "FALCTL_HOME": str(home / "f"), "OMP_NUM_THREADS": "1", "FALCTL_RUNNERS_DRAIN_TIMEOUT": "0s"}  # fmt: skip
    command = [sys.executable, "-P", "-m", "falctl"]
    app = f"{Path(__file__).parent / 'apps.py'}::Clocked"
    up = [*command, "up", "-d", "--gpus", "none", "--runners", "1", "--port", "0", app]
    subprocess.run(up, env=environ, check=True, stdout=sys.stderr)
    try:
        told = subprocess.run([*command, "status", "--json"], env=environ, capture_output=True, check=True)
        yield Client(json.loads(told.stdout)["fleet"]["url"])
    finally:
        subprocess.run([*command, "down"], env=environ, check=True, stdout=sys.stderr)


def _pause() -> None:
    threading.Event().wait(_POLL_S)
