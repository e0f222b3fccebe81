"""
The webhooks that are still to be delivered, as they stand in the job database.

A row is there from the end of its job, in the same transaction (a trigger; `falctl.router.jobs.database`), until it is
delivered or given up. Nothing of it is held in memory but for those that are being called, so that ten thousand cost
what a few do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any, Final

from falctl.core.types import RequestId
from falctl.router.fal.webhooks.letter import PAYLOAD_BYTES_MAX, Ended
from falctl.router.jobs import rows
from falctl.router.jobs.envelope import unpack
from falctl.router.jobs.store import JobStore
from falctl.router.jobs.writer import Transaction

_DUE: Final = """
SELECT w.job, j.id, w.receiver, w.tries, j.ended_at, j.envelope FROM webhooks w JOIN jobs j ON j.number = w.job
WHERE w.next_at <= ? AND {others} ORDER BY w.next_at LIMIT ?
"""
_NEXT: Final = "SELECT min(next_at) FROM webhooks w WHERE {others}"
_RESULT_SIZE: Final = "SELECT size FROM payloads WHERE job = ? AND kind = 'result'"
_DONE: Final = "DELETE FROM webhooks WHERE job = ?"
_AGAIN: Final = "UPDATE webhooks SET tries = ?, next_at = ? WHERE job = ?"


@dataclass(frozen=True, slots=True)
class Due:
    """A webhook whose time has come. Instants are of the wall clock."""

    job: int
    request: RequestId
    receiver: str
    tries: int
    """How many have failed."""
    ended_at: float
    url: str


@dataclass(frozen=True, slots=True)
class Besides:
    """Whom to leave out: jobs that are being told of, receivers that are to be called no more for now."""

    jobs: Sequence[int]
    receivers: Sequence[str]

    def fill(self, sql: str) -> str:
        """Return *sql* with the condition; `values` are its parameters."""
        jobs, receivers = (",".join("?" * len(values)) for values in (self.jobs, self.receivers))
        return sql.format(others=f"w.job NOT IN ({jobs}) AND w.receiver NOT IN ({receivers})")

    @property
    def values(self) -> tuple[Any, ...]:
        return (*self.jobs, *self.receivers)


class Outbox:
    """Reads and writes those rows of *store*."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def due(self, now: float, besides: Besides, *, limit: int) -> list[Due]:
        """Return at most *limit* whose time has come, the longest overdue first. Raises sqlite3.Error."""

        def read(connection: Connection) -> list[Due]:
            found = connection.execute(besides.fill(_DUE), (now, *besides.values, limit))
            return [_due(row) for row in found]

        return await self._store.read(read)

    async def next_at(self, besides: Besides) -> float | None:
        """Return when the next will be due; None: there is none. Raises sqlite3.Error."""

        def read(connection: Connection) -> float | None:
            at: float | None = connection.execute(besides.fill(_NEXT), besides.values).fetchone()[0]
            return at

        return await self._store.read(read)

    async def failing(self) -> int:
        """Return how many have been tried in vain. Raises sqlite3.Error."""
        sql = "SELECT count(*) FROM webhooks WHERE tries > 0"
        return await self._store.read(lambda connection: int(connection.execute(sql).fetchone()[0]))

    async def ended(self, due: Due) -> Ended | None:
        """Return how the job of *due* ended; None: it is gone. A large answer is not read. Raises sqlite3.Error."""

        def size(connection: Connection) -> int | None:
            row = connection.execute(_RESULT_SIZE, (due.job,)).fetchone()
            return None if row is None else row[0]

        saved = await self._store.find(due.request)
        if saved is None or saved.ending is None:
            return None
        size_bytes = await self._store.read(size)
        fits = size_bytes is not None and size_bytes <= PAYLOAD_BYTES_MAX
        answer = await self._store.answer(due.request) if fits else None
        payload = None if answer is None else answer.body
        return Ended(due.request, saved.ending.outcome, answered=size_bytes is not None, payload=payload)

    async def done(self, due: Due, *, leaves_at: float) -> None:
        """
        Make durable that nobody needs to be told any more; what is kept briefly leaves at that instant.

        Raises:
            StorageFullError: it is not.
        """

        def write(transaction: Transaction) -> None:
            transaction.connection.execute(_DONE, (due.job,))
            rows.let_leave(transaction.connection, due.request, at=leaves_at)

        await self._store.write(write)

    async def again(self, due: Due, *, at: float) -> None:
        """Make durable that one more try has failed, and when the next one is. Raises StorageFullError."""

        def write(transaction: Transaction) -> None:
            transaction.connection.execute(_AGAIN, (due.tries + 1, at, due.job))

        await self._store.write(write)


def _due(row: tuple[Any, ...]) -> Due:
    job, request, receiver, tries, ended_at, envelope = row
    url = unpack(envelope).webhook
    assert url is not None, "who has a receiver has a URL"
    return Due(job, RequestId(request), receiver, tries, ended_at, url)
