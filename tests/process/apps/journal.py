"""An app that writes down when it begins and ends each piece of work, so that a test sees who was at it, and when."""

from __future__ import annotations

import os
import threading

from pydantic import BaseModel

from falctl import App, endpoint

JOURNAL = "JOURNAL_OF_THE_TEST"
"""Environment variable with the path of the file."""


class Work(BaseModel):
    """A piece of work."""

    n: int
    seconds: float


class Journal(App):
    """Works, and cannot be interrupted."""

    def setup(self) -> None:
        self._fd = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @endpoint("/work")
    def work(self, work: Work) -> dict[str, int]:
        self._note("begin", work.n)
        threading.Event().wait(work.seconds)
        self._note("end", work.n)
        return {"n": work.n}

    def _note(self, what: str, n: int) -> None:
        os.write(
            self._fd, f"{what} {n} {os.getpid()}\n".encode()
        )  # one write is one line, whoever else writes
