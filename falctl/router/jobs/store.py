"""
The store of queued jobs: what it says is there survives the power.

All writes go through one thread (`falctl.router.jobs.writer`), so that those who come together share a commit; reads
have a thread of their own (`falctl.router.jobs.reads`). Neither waits on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from sqlite3 import Connection
from sqlite3 import Error as SqliteError
from typing import TypeVar

from falctl.clock import wall_s
from falctl.core.retries import Condition
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.private_file import make_private
from falctl.router.jobs import rows
from falctl.router.jobs.bodies import Bodies
from falctl.router.jobs.database import ROW_BYTES, open_database
from falctl.router.jobs.payloads import Payload, Payloads
from falctl.router.jobs.reads import JobReads
from falctl.router.jobs.records import Answer, Ending, LogLine, NewJob, StoreLimits
from falctl.router.jobs.room import delete_ended, make_room
from falctl.router.jobs.wiped import Place
from falctl.router.jobs.writer import Transaction, Write, Writer

log = logging.getLogger(__name__)

T = TypeVar("T")


class JobStore(JobReads):
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
        make_private(folder)
        path = folder / "jobs.db"
        writing = open_database(path)
        bodies = Bodies(folder / "bodies")
        self._place = Place(path, bodies)
        super().__init__(path, bodies)
        if strangers := bodies.keep_only(rows.files_named(self._reading)):
            log.info("jobs.half_written deleted=%d", strangers)
        self._payloads = Payloads(bodies)
        self.writer = Writer(writing, discard=bodies.discard, renew=self._in_place)

    async def submit(self, job: NewJob) -> int:
        """
        Make *job* durable; return its number.

        Raises:
            StorageFullError: it is not, and leaves nothing behind.
        """
        payload = await self._stored(job.body)

        def write(transaction: Transaction) -> int | StorageFullError:
            wanted = ROW_BYTES + len(job.envelope) + len(job.body)
            if not make_room(transaction, wanted, max_bytes=self.limits.max_bytes):
                return StorageFullError(f"the queue holds as many bytes as queue.max_disk allows, {self.limits.max_bytes}; send it again later, or raise that")  # fmt: skip
            number = rows.insert_job(transaction.connection, job, at=wall_s())
            rows.insert_payload(transaction.connection, number, "request", payload)
            return number

        number = await self._write_or_discard(write, payload)
        if isinstance(number, StorageFullError):
            self._payloads.discard(payload)
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
            number = rows.end_job(connection, request, ending)
            if number is None:
                transaction.doomed += [payload[2]] if payload and payload[2] else []
                return
            transaction.doomed += rows.delete_payloads(connection, number, "request")
            if payload is not None and answer is not None:
                make_room(transaction, payload[0], max_bytes=self.limits.max_bytes, spare=number)
                rows.insert_payload(connection, number, "result", payload, answer.headers)

        await self._write_or_discard(write, payload)

    async def add_logs(self, request: RequestId, lines: Sequence[LogLine], *, retold: bool = False) -> None:
        """Keep what an app printed while it served *request*; *retold*: some of it may be kept. Raises StorageFullError."""

        def write(transaction: Transaction) -> None:
            number = rows.number_of(transaction.connection, request)
            if number is not None:
                limit = self.limits.log_bytes_max
                new = rows.without_known(transaction.connection, number, lines) if retold else lines
                rows.insert_logs(transaction.connection, number, new, bytes_max=limit)

        await self.write(write)

    async def let_leave(self, request: RequestId, *, after_s: float) -> None:
        """Let a job that is kept briefly leave, if it does not leave before. Raises StorageFullError."""
        at = wall_s() + after_s
        await self.write(lambda transaction: rows.let_leave(transaction.connection, request, at=at))

    async def sweep(self) -> int:
        """
        Delete the jobs that ended more than `StoreLimits.keep_s` ago, and what leaves sooner; return how many.

        Raises:
            StorageFullError: the disk did not take it.
        """
        now, keep_s, deleted = wall_s(), self.limits.keep_s, 0
        while last := await self.write(lambda t: delete_ended(t, now=now, keep_s=keep_s)):
            deleted += last
        return deleted

    async def write(self, write: Write[T]) -> T:
        """Return the value of *write*, made in a transaction of the one writer, once that is durable. Raises StorageFullError."""
        try:
            return await asyncio.shield(self.writer.submit(write))
        except (SqliteError, OSError) as error:
            raise _refused(error) from error

    async def look_after(self) -> None:
        """Put the database back if it was deleted: the next write may come late. Raises StorageFullError."""
        if not self._place.holds:
            await self.write(lambda _: None)

    def close(self) -> None:
        """Commit what was asked for, and close. Blocks."""
        self._payloads.close()
        self.writer.close()
        self.stop_reading()

    # --- how -------------------------------------------------------------------------------------

    def _in_place(self, writing: Connection) -> Connection:
        if self._place.holds:
            return writing
        renewed = self._place.put_back(writing)
        self.read_anew(self._place.path)
        return renewed

    async def _stored(self, content: bytes) -> Payload:
        try:
            return await self._payloads.put(content)
        except OSError as error:
            raise _refused(error) from error

    async def _execute(self, sql: str, values: tuple[object, ...]) -> None:
        def write(transaction: Transaction) -> None:
            transaction.connection.execute(sql, values)

        await self.write(write)

    async def _write_or_discard(self, write: Write[T], payload: Payload | None) -> T:
        try:
            return await self.write(write)
        except StorageFullError:
            self._payloads.discard(payload)
            raise


def _refused(error: Exception) -> StorageFullError:
    return StorageFullError(
        f"the job could not be written to the disk: {error}; send it again when there is room"
    )
