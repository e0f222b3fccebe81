"""
One thread that writes, and commits together what came while it was busy.

Nothing waits for others to come: a lone write is committed at once, and whatever arrives during its ``fdatasync`` is
the next group. So latency is that of the disk, and throughput grows with the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

log = logging.getLogger(__name__)

GROUP_MAX: Final = 512
"""More would make the first wait for the last."""

T = TypeVar("T")


@dataclass(slots=True)
class Transaction:
    """What a write works on. Files in ``doomed`` are deleted once it is durable that no row names them."""

    connection: sqlite3.Connection
    doomed: list[str] = field(default_factory=list)


Write: TypeAlias = Callable[[Transaction], T]


@dataclass(frozen=True, slots=True)
class _Asked:
    write: Write[Any]
    future: asyncio.Future[Any]


_Results: TypeAlias = list[tuple[asyncio.Future[Any], Any, BaseException | None]]


class Writer:
    """Owner of the one connection that writes. Used from one event loop, ended by `close`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        discard: Callable[[list[str]], None],
        renew: Callable[[sqlite3.Connection], sqlite3.Connection],
    ) -> None:
        """
        *renew* returns the connection for the next transaction, given that of the last; *discard* deletes files.

        Both are called on the thread. What *renew* raises is what the disk says.
        """
        self._connection = connection
        self._renew = renew
        self._discard = discard
        self._inbox: SimpleQueue[_Asked | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="job-writer", daemon=True)
        self._closed = False
        self._said = ""
        """Why nothing can be written; empty: the last transaction was good."""
        self.writes = 0
        """How many were committed."""
        self.transactions = 0
        """In how many transactions, each of which is one ``fdatasync``."""
        self._thread.start()

    def submit(self, write: Write[T]) -> asyncio.Future[T]:
        """
        Let the thread call *write* in a transaction; the future has its value once that is durable.

        What the disk says is raised by the future as sqlite3.Error or OSError, and then nothing of it is durable.
        *write* itself refuses by its value: an exception makes all who wait together commit one by one, and may
        call it twice.
        """
        assert not self._closed, "the job store is closed"
        future: asyncio.Future[T] = self._loop.create_future()
        self._inbox.put(_Asked(write, future))
        return future

    def close(self) -> None:
        """Commit what was asked for, and end. Blocks; nobody hears of these results."""
        self._closed = True
        self._inbox.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while (first := self._inbox.get()) is not None:
            group, ends = self._rest(first)
            results = self._commit(group)
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(_deliver, results)
            if ends:
                return

    def _rest(self, first: _Asked) -> tuple[list[_Asked], bool]:
        """Return *first* with all that waits by now, and whether that is the end."""
        group = [first]
        with contextlib.suppress(Empty):
            while len(group) < GROUP_MAX:
                if (asked := self._inbox.get_nowait()) is None:
                    return group, True
                group.append(asked)
        return group, False

    def _commit(self, group: list[_Asked]) -> _Results:
        """Commit *group* together; if that fails, one by one, so that each hears what it is to blame for."""
        try:
            values, doomed = self._transact(group)
        except Exception as error:
            if len(group) > 1:
                return [result for asked in group for result in self._commit([asked])]
            known = isinstance(error, sqlite3.Error | OSError)
            if self._is_news(error):
                log.warning("jobs.not_written: %s", error, exc_info=None if known else error)
            return [(group[0].future, None, error)]
        if self._said:
            self._said = ""
            log.info("jobs.written_again")
        self._discard(doomed)
        return [(asked.future, value, None) for asked, value in zip(group, values, strict=True)]

    def _is_news(self, error: Exception) -> bool:
        """Return whether *error* is another than the last: on a full disk each job that waits tries again every second."""
        said, self._said = self._said, f"{type(error).__name__}: {error}"
        return self._said != said

    def _transact(self, group: list[_Asked]) -> tuple[list[Any], list[str]]:
        connection = self._connection = self._renew(self._connection)
        transaction = Transaction(connection)
        try:
            connection.execute("BEGIN IMMEDIATE")
            values = [asked.write(transaction) for asked in group]
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.writes += len(group)
        self.transactions += 1
        return values, transaction.doomed


def _deliver(results: _Results) -> None:
    for future, value, error in results:
        if future.done():
            continue  # who waited was cancelled; it is durable all the same
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
