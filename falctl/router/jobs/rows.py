"""Jobs as rows: each statement once, and how its columns become values."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, Literal, TypeAlias

from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.router.jobs.records import Ending, LogLine, NewJob, SavedJob

_LOG_COSTS_BYTES: Final = 64
"""What a line is said to take beside its text."""

PayloadKind: TypeAlias = Literal["request", "result"]

SELECT_JOB: Final = "SELECT id, number, envelope, submitted_at, attempts, failures, dispatched, cancel_asked, ended_at, ending FROM jobs "
SELECT_LOGS: Final = (
    "SELECT at, level, message FROM logs WHERE job = (SELECT number FROM jobs WHERE id = ?) "
    "ORDER BY rowid LIMIT -1 OFFSET ?"
)
SELECT_LEAVING: Final = (
    "SELECT number FROM jobs WHERE (ended_at < ? OR leaves_at < ?) AND number NOT IN (SELECT job FROM webhooks) "
    "ORDER BY ended_at LIMIT ?"
)
SELECT_PAYLOAD: Final = "SELECT content, file, headers FROM payloads WHERE job = (SELECT number FROM jobs WHERE id = ?) AND kind = ?"


def job_of(row: tuple[Any, ...]) -> SavedJob:
    """Return the job of a row of `SELECT_JOB`."""
    (
        request,
        number,
        envelope,
        submitted_at,
        attempts,
        failures,
        dispatched,
        cancel_asked,
        ended_at,
        ending,
    ) = row
    return SavedJob(
        RequestId(request),
        number,
        envelope,
        submitted_at,
        attempts,
        json.loads(failures),
        dispatched=bool(dispatched),
        cancel_asked=bool(cancel_asked),
        ending=None if ending is None else _ending_of(json.loads(ending), ended_at),
    )


def ending_text(ending: Ending) -> str:
    """Return *ending*, but its instant, as it stands in its column."""
    return json.dumps({"outcome": asdict(ending.outcome), "inference_s": ending.inference_s})


def _ending_of(table: dict[str, Any], ended_at: float) -> Ending:
    return Ending(Outcome(**table["outcome"]), table["inference_s"], ended_at)


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return what all jobs take on the disk."""
    used: int = connection.execute("SELECT bytes FROM usage").fetchone()[0]
    return used


def insert_job(connection: sqlite3.Connection, job: NewJob, *, at: float) -> int:
    """Add a job that was submitted at that instant; return its number."""
    sql = "INSERT INTO jobs (id, envelope, submitted_at, receiver, brief) VALUES (?, ?, ?, ?, ?)"
    values = (job.request, job.envelope, at, job.receiver, job.brief)
    number = connection.execute(sql, values).lastrowid
    assert number is not None
    return number


def number_of(connection: sqlite3.Connection, request: RequestId) -> int | None:
    """Return the number of the job of that id; None: there is none."""
    row = connection.execute("SELECT number FROM jobs WHERE id = ?", (request,)).fetchone()
    return None if row is None else row[0]


def end_job(connection: sqlite3.Connection, request: RequestId, ending: Ending) -> int | None:
    """Note how a job ended; return its number. None: it had ended before, or there is none."""
    row = connection.execute(
        "UPDATE jobs SET ended_at = ?, ending = ?, dispatched = 0 WHERE id = ? AND ended_at IS NULL RETURNING number",
        (ending.ended_at, ending_text(ending), request),
    ).fetchall()
    return row[0][0] if row else None


def let_leave(connection: sqlite3.Connection, request: RequestId, *, at: float) -> None:
    """Let a job that is kept only briefly leave at that instant, if it does not leave before."""
    sql = "UPDATE jobs SET leaves_at = min(coalesce(leaves_at, ?), ?) WHERE id = ? AND brief AND ended_at IS NOT NULL"
    connection.execute(sql, (at, at, request))


def insert_payload(
    connection: sqlite3.Connection,
    number: int,
    kind: PayloadKind,
    payload: tuple[int, bytes | None, str | None],
    headers: Sequence[tuple[str, str]] = (),
) -> None:
    """Add a payload of so many bytes, which stands here or in a file; *headers* are those of an answer."""
    connection.execute(
        "INSERT INTO payloads (job, kind, size, content, file, headers) VALUES (?, ?, ?, ?, ?, ?)",
        (number, kind, *payload, json.dumps(list(headers)) if headers else None),
    )


def counts(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many jobs have not ended, and how many have."""
    row = connection.execute("SELECT count(*) - count(ended_at), count(ended_at) FROM jobs").fetchone()
    return row[0], row[1]


def files_named(connection: sqlite3.Connection) -> set[str]:
    """Return the files in which payloads stand."""
    return {file for (file,) in connection.execute("SELECT file FROM payloads WHERE file IS NOT NULL")}


def delete_payloads(
    connection: sqlite3.Connection, number: int, kind: PayloadKind | None = None
) -> list[str]:
    """Delete the payloads of a job, of one kind or all; return the files that they stood in."""
    rows = connection.execute(
        "DELETE FROM payloads WHERE job = ? AND kind = coalesce(?, kind) RETURNING file", (number, kind)
    )
    return [file for (file,) in rows if file is not None]


def delete_job(connection: sqlite3.Connection, number: int) -> list[str]:
    """Delete all of a job; return the files that it leaves behind."""
    files = delete_payloads(connection, number)
    connection.execute("DELETE FROM logs WHERE job = ?", (number,))
    connection.execute("DELETE FROM jobs WHERE number = ?", (number,))
    return files


def oldest_ended(connection: sqlite3.Connection) -> int | None:
    """Return the number of the job that ended first, of those without a webhook to deliver; None: there is none."""
    row = connection.execute(
        "SELECT number FROM jobs WHERE ended_at IS NOT NULL AND number NOT IN (SELECT job FROM webhooks) "
        "ORDER BY ended_at LIMIT 1"
    ).fetchone()
    return None if row is None else row[0]


def without_known(connection: sqlite3.Connection, number: int, lines: Sequence[LogLine]) -> list[LogLine]:
    """Return those of *lines* that do not stand there."""
    found = connection.execute("SELECT at, level, message FROM logs WHERE job = ?", (number,))
    known = {LogLine(*row) for row in found}
    return [line for line in lines if line not in known]


def insert_logs(
    connection: sqlite3.Connection, number: int, lines: Sequence[LogLine], *, bytes_max: int
) -> None:
    """Add *lines* to those of a job, until they take *bytes_max*; then one more says that there were others."""
    row = connection.execute("SELECT total(size) FROM logs WHERE job = ?", (number,)).fetchone()
    used = int(row[0])
    for line in lines:
        if used > bytes_max:
            return
        text = line.message.encode("utf-8", "replace").decode()
        level, size = line.level, len(text.encode()) + _LOG_COSTS_BYTES
        used += size
        if used > bytes_max:
            level, text = (
                "WARN",
                f"falctl: the logs of this job take {bytes_max:,} bytes; nothing more is kept",
            )
            size = bytes_max + 1 - (used - size)  # full from now on, however short that line is
        connection.execute("INSERT INTO logs VALUES (?, ?, ?, ?, ?)", (number, line.at, level, text, size))
