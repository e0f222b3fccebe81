"""What is asked of the store of queued jobs: on a thread and a connection of its own, so that no commit is waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sqlite3 import Connection
from typing import TypeAlias, TypeVar

from falctl.core.decisions import PREFIX_MIN
from falctl.core.types import RequestId
from falctl.router.jobs import rows
from falctl.router.jobs.bodies import Bodies
from falctl.router.jobs.database import connect
from falctl.router.jobs.records import Answer, LogLine, SavedJob

T = TypeVar("T")
Read: TypeAlias = Callable[[Connection], T]


class JobReads:
    """Reads what is committed. Made and used on one event loop."""

    def __init__(self, path: Path, bodies: Bodies) -> None:
        """Read the database at *path*, which has been opened before. Blocks."""
        self._bodies = bodies
        self._reading = _open(path)
        self._reader = ThreadPoolExecutor(1, "job-reader")

    def recover(self) -> Iterator[SavedJob]:
        """Iterate over the jobs that have not ended, in order of submission. Blocks; before anything else is called."""
        found = self._reading.execute(rows.SELECT_JOB + "WHERE ended_at IS NULL ORDER BY number")
        return map(rows.job_of, found)

    async def find(self, request: RequestId) -> SavedJob | None:
        """Return the job of that id; None: there is none, or none any more."""

        def read(connection: Connection) -> SavedJob | None:
            row = connection.execute(rows.SELECT_JOB + "WHERE id = ?", (request,)).fetchone()
            return None if row is None else rows.job_of(row)

        return await self.read(read)

    async def beginning(self, prefix: str) -> RequestId | None:
        """Return the one job that is called or begins so; None: none, or several, or that is too short to tell."""
        if len(prefix) < PREFIX_MIN:
            return None
        values = (prefix, prefix + "\U0010ffff")
        found = await self.read(
            lambda connection: connection.execute(
                "SELECT id FROM jobs WHERE id >= ? AND id < ? LIMIT 2", values
            ).fetchall()
        )
        return RequestId(found[0][0]) if found and (len(found) == 1 or found[0][0] == prefix) else None

    async def listed(self, most: int) -> tuple[list[SavedJob], list[SavedJob]]:
        """Return the first *most* jobs of which no attempt is under way, and the last *most* that have, each with the nearest first."""

        def read(connection: Connection) -> tuple[list[SavedJob], list[SavedJob]]:
            waiting, ended = (
                [rows.job_of(row) for row in connection.execute(rows.SELECT_JOB + which, (most,))]
                for which in (
                    "WHERE ended_at IS NULL AND NOT dispatched ORDER BY number LIMIT ?",
                    "WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT ?",
                )
            )
            return waiting, ended

        return await self.read(read)

    async def body(self, request: RequestId) -> bytes | None:
        """Return what was submitted; None: it has ended, or there is no such job."""
        found = await self.read(lambda connection: self._payload(connection, request, "request"))
        return None if found is None else found.body

    async def answer(self, request: RequestId) -> Answer | None:
        """Return what the app answered; None: it has not, or no more."""
        return await self.read(lambda connection: self._payload(connection, request, "result"))

    async def logs(self, request: RequestId, *, skip: int = 0) -> list[LogLine]:
        """Return what the app printed while it served *request*, in order, without the first *skip* lines."""
        values = (request, skip)
        return await self.read(
            lambda connection: [LogLine(*row) for row in connection.execute(rows.SELECT_LOGS, values)]
        )

    async def used_bytes(self) -> int:
        """Return what all jobs take on the disk."""
        return await self.read(rows.used_bytes)

    async def read(self, read: Read[T]) -> T:
        """Return the value of *read*, made on the thread that reads. Raises sqlite3.Error."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, lambda: read(self._reading))

    def read_anew(self, path: Path) -> None:
        """Have whatever is asked for from now on read from the database that stands at *path* by now. Any thread."""
        self._reader.submit(self._reopen, path)

    def stop_reading(self) -> None:
        """Answer what was asked for, and close. Blocks."""
        self._reader.shutdown()
        self._reading.close()

    def _reopen(self, path: Path) -> None:
        self._reading.close()
        self._reading = _open(path)

    def _payload(self, connection: Connection, request: RequestId, kind: rows.PayloadKind) -> Answer | None:
        row = connection.execute(rows.SELECT_PAYLOAD, (request, kind)).fetchone()
        if row is None:
            return None
        content, file, headers = row
        try:
            body = content if file is None else self._bodies.read(file)
        except FileNotFoundError:
            return None  # it was deleted between the two reads
        return Answer(tuple((name, value) for name, value in json.loads(headers or "[]")), body)


def _open(path: Path) -> Connection:
    connection = connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection
