"""
The store of queued jobs: what it says is there survives the power.

All writes go through one thread (`falctl.router.jobs.writer`), all reads through another, with a connection of its
own, so that neither the event loop nor a commit waits for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sqlite3 import Connection
from sqlite3 import Error as SqliteError
from typing import Final, TypeAlias, TypeVar

from falctl.clock import wall_clock
from falctl.core.retries import Condition
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.router.jobs import rows
from falctl.router.jobs.bodies import INLINE_BYTES_MAX, Bodies
from falctl.router.jobs.database import ROW_BYTES, connect, open_database
from falctl.router.jobs.records import Answer, Ending, LogLine, NewJob, SavedJob, StoreLimits
from falctl.router.jobs.writer import Transaction, Write, Writer

log = logging.getLogger(__name__)

_SWEEP_JOBS: Final = 256
"""Deleted in one write: who submits meanwhile waits for that."""

_LARGE_AT_ONCE: Final = 4
"""Bodies written as files at a time."""

_Payload: TypeAlias = tuple[int, bytes | None, str | None]
"""Its size, and its content or the file in which that stands."""

T = TypeVar("T")
_Read: TypeAlias = Callable[[Connection], T]


class JobStore:
    """
    Owner of the database and its folder. Made and used on one event loop; ``limits`` is exchanged by a reload.

    Who awaits a write may be cancelled: the write is made all the same, unless its large body is still on its way to a
    file. Writes become durable in the order in which they are called, but for those with large bodies.
    """

    def __init__(self, folder: Path, limits: StoreLimits) -> None:
        """
        Open what is in *folder*, or begin there. Blocks.

        Raises:
            StartError: what is there cannot be used; it is left as it is.
        """
        self.limits = limits
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / "jobs.db"
        writing = open_database(path)
        self._path, self._inode = path, path.stat().st_ino
        self._bodies = Bodies(folder / "bodies")
        self._reading = connect(path)
        self._reading.execute("PRAGMA query_only = ON")
        named = self._reading.execute("SELECT file FROM payloads WHERE file IS NOT NULL")
        if strangers := self._bodies.keep_only({file for (file,) in named}):
            log.info("jobs.half_written deleted=%d", strangers)
        self._reader = ThreadPoolExecutor(1, "job-reader")
        self._large = ThreadPoolExecutor(_LARGE_AT_ONCE, "job-bodies")
        self.writer = Writer(writing, discard=self._bodies.discard)

    def recover(self) -> Iterator[SavedJob]:
        """Iterate over the jobs that have not ended, in order of submission. Blocks; before anything else is called."""
        found = self._reading.execute(rows.SELECT_JOB + "WHERE ended_at IS NULL ORDER BY number")
        return map(rows.job_of, found)

    # --- writes ----------------------------------------------------------------------------------

    async def submit(self, job: NewJob) -> int:
        """
        Make *job* durable; return its number.

        Raises:
            StorageFullError: it is not, and leaves nothing behind.
        """
        payload = await self._stored(job.body)

        def write(transaction: Transaction) -> int | StorageFullError:
            connection = transaction.connection
            if not self._in_place():
                return StorageFullError(f"{self._path} was deleted while falctl ran: what is written is lost; start falctl again")  # fmt: skip
            wanted = ROW_BYTES + len(job.envelope) + len(job.body)
            if not _make_room(transaction, wanted, self.limits.max_bytes):
                return StorageFullError(f"the queue holds as many bytes as queue.max_disk allows, {self.limits.max_bytes}; send it again later, or raise that")  # fmt: skip
            number = connection.execute(
                "INSERT INTO jobs (id, envelope, submitted_at) VALUES (?, ?, ?)",
                (job.request, job.envelope, _now()),
            ).lastrowid
            assert number is not None
            rows.insert_payload(connection, number, "request", payload)
            return number

        number = await self._write_or_discard(write, payload)
        if isinstance(number, StorageFullError):
            self._discard(payload)
            raise number
        return number

    async def begin_attempt(
        self, request: RequestId, *, attempts: int, failures: Mapping[Condition, int], dispatched: bool = True
    ) -> None:
        """
        Make durable that this is attempt number *attempts*, or, not *dispatched*, that so many are over.

        Raises:
            StorageFullError: it is not.
        """
        values = (attempts, json.dumps(dict(failures)), dispatched, request)
        await self._execute("UPDATE jobs SET attempts = ?, failures = ?, dispatched = ? WHERE id = ?", values)

    async def cancel(self, request: RequestId) -> None:
        """Make durable that its client wants it no more. Raises StorageFullError."""
        await self._execute("UPDATE jobs SET cancel_asked = 1 WHERE id = ?", (request,))

    async def end(self, request: RequestId, ending: Ending, answer: Answer | None) -> None:
        """
        Make durable how *request* ended; what it was asked is deleted. A second end changes nothing.

        It is stored even beyond `StoreLimits.max_bytes`, since only ends make room.

        Raises:
            StorageFullError: it is not durable.
        """
        payload = None if answer is None else await self._stored(answer.body)

        def write(transaction: Transaction) -> None:
            connection = transaction.connection
            found = connection.execute(
                "UPDATE jobs SET ended_at = ?, ending = ?, dispatched = 0 WHERE id = ? AND ended_at IS NULL RETURNING number",
                (ending.ended_at, rows.ending_text(ending), request),
            ).fetchall()
            if not found:
                transaction.doomed += [payload[2]] if payload and payload[2] else []
                return
            number = found[0][0]
            transaction.doomed += rows.delete_payloads(connection, number, "request")
            if payload is not None and answer is not None:
                _make_room(transaction, payload[0], self.limits.max_bytes, spare=number)
                rows.insert_payload(connection, number, "result", payload)
                connection.execute(
                    "UPDATE payloads SET headers = ? WHERE job = ? AND kind = 'result'",
                    (json.dumps(answer.headers), number),
                )

        await self._write_or_discard(write, payload)

    async def add_logs(self, request: RequestId, lines: Sequence[LogLine]) -> None:
        """Keep what an app printed while it served *request*. Raises StorageFullError."""

        def write(transaction: Transaction) -> None:
            row = transaction.connection.execute(
                "SELECT number FROM jobs WHERE id = ?", (request,)
            ).fetchone()
            if row is not None:
                limit = self.limits.log_bytes_max
                rows.insert_logs(transaction.connection, row[0], list(lines), bytes_max=limit)

        await self._written(write)

    async def sweep(self) -> int:
        """Delete the jobs that ended more than `StoreLimits.keep_s` ago; return how many. Raises StorageFullError."""
        before = _now() - self.limits.keep_s

        def write(transaction: Transaction) -> int:
            found = transaction.connection.execute(
                "SELECT number FROM jobs WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (before, _SWEEP_JOBS)
            ).fetchall()
            for (number,) in found:
                transaction.doomed += rows.delete_job(transaction.connection, number)
            return len(found)

        deleted = 0
        while last := await self._written(write):
            deleted += last
        return deleted

    # --- reads -----------------------------------------------------------------------------------

    async def find(self, request: RequestId) -> SavedJob | None:
        """Return the job of that id; None: there is none, or none any more."""

        def read(connection: Connection) -> SavedJob | None:
            row = connection.execute(rows.SELECT_JOB + "WHERE id = ?", (request,)).fetchone()
            return None if row is None else rows.job_of(row)

        return await self._read(read)

    async def body(self, request: RequestId) -> bytes | None:
        """Return what was submitted; None: it has ended, or there is no such job."""
        found = await self._read(lambda connection: self._payload(connection, request, "request"))
        return None if found is None else found.body

    async def answer(self, request: RequestId) -> Answer | None:
        """Return what the app answered; None: it has not, or no more."""
        return await self._read(lambda connection: self._payload(connection, request, "result"))

    async def logs(self, request: RequestId) -> list[LogLine]:
        """Return what the app printed while it served *request*, in order."""
        return await self._read(
            lambda connection: [LogLine(*row) for row in connection.execute(rows.SELECT_LOGS, (request,))]
        )

    async def used_bytes(self) -> int:
        """Return what all jobs take on the disk."""
        return await self._read(rows.used_bytes)

    def close(self) -> None:
        """Commit what was asked for, and close. Blocks."""
        self._large.shutdown()
        self._reader.shutdown()
        self.writer.close()
        self._reading.close()

    # --- how -------------------------------------------------------------------------------------

    def _in_place(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    async def _stored(self, content: bytes) -> _Payload:
        if len(content) <= INLINE_BYTES_MAX:
            return len(content), content, None
        loop = asyncio.get_running_loop()
        try:
            return len(content), None, await loop.run_in_executor(self._large, self._bodies.write, content)
        except OSError as error:
            raise _refused(error) from error

    async def _execute(self, sql: str, values: tuple[object, ...]) -> None:
        def write(transaction: Transaction) -> None:
            transaction.connection.execute(sql, values)

        await self._written(write)

    async def _written(self, write: Write[T]) -> T:
        try:
            return await asyncio.shield(self.writer.submit(write))
        except (SqliteError, OSError) as error:
            raise _refused(error) from error

    async def _write_or_discard(self, write: Write[T], payload: _Payload | None) -> T:
        try:
            return await self._written(write)
        except StorageFullError:
            self._discard(payload)
            raise

    def _discard(self, payload: _Payload | None) -> None:
        """Delete the file of a payload that no row will name."""
        if payload is not None and payload[2] is not None:
            self._bodies.discard([payload[2]])

    async def _read(self, read: _Read[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, read, self._reading)

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


def _make_room(transaction: Transaction, wanted: int, max_bytes: int, *, spare: int = 0) -> bool:
    """Delete ended jobs, the oldest first, until *wanted* bytes fit; return whether they do. Never deletes *spare*."""
    connection = transaction.connection
    while rows.used_bytes(connection) + wanted > max_bytes:
        number = rows.oldest_ended(connection)
        if number is None or number == spare:
            return False
        transaction.doomed += rows.delete_job(connection, number)
    return True


def _refused(error: Exception) -> StorageFullError:
    return StorageFullError(
        f"the job could not be written to the disk: {error}; send it again when there is room"
    )


def _now() -> float:
    return wall_clock().timestamp()
