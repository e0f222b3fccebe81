"""
The file that jobs stand in: its schema, and whether a file that is found is one that we can trust.

SQLite in WAL mode with ``synchronous=FULL``: a commit is one ``fdatasync`` of the log, and after it the job is there
whatever dies. ``usage`` holds what all payloads and logs take, kept by triggers, so that it is right in every
transaction and after every crash. A job with a ``receiver`` has a row in ``webhooks`` from its end, in the same
transaction, until that webhook is delivered or given up; a ``brief`` one leaves soon after somebody has had its result.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from falctl.errors import StartError
from falctl.private_file import sync_folder

APPLICATION_ID: Final = 0x66616C63
"""``falc``, in the header of the file."""

ROW_BYTES: Final = 512
"""What a job is said to take beside its payloads: its row and its places in the indexes. The triggers say it, too."""

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        envelope BLOB NOT NULL,
        submitted_at REAL NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        failures TEXT NOT NULL DEFAULT '{}',
        dispatched INTEGER NOT NULL DEFAULT 0,
        cancel_asked INTEGER NOT NULL DEFAULT 0,
        ended_at REAL,
        ending TEXT
    );
    CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE ended_at IS NOT NULL;
    CREATE INDEX jobs_to_do ON jobs (number) WHERE ended_at IS NULL;
    CREATE TABLE payloads (
        job INTEGER NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, content BLOB, file TEXT, headers TEXT,
        UNIQUE (job, kind)
    );
    CREATE TABLE logs (
        job INTEGER NOT NULL, at REAL NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL, size INTEGER NOT NULL
    );
    CREATE INDEX logs_by_job ON logs (job);
    CREATE TABLE usage (bytes INTEGER NOT NULL);
    INSERT INTO usage VALUES (0);
    CREATE TRIGGER jobs_in AFTER INSERT ON jobs BEGIN
        UPDATE usage SET bytes = bytes + 512 + length(new.envelope); END;
    CREATE TRIGGER jobs_out AFTER DELETE ON jobs BEGIN
        UPDATE usage SET bytes = bytes - 512 - length(old.envelope); END;
    CREATE TRIGGER payloads_in AFTER INSERT ON payloads BEGIN
        UPDATE usage SET bytes = bytes + new.size; END;
    CREATE TRIGGER payloads_out AFTER DELETE ON payloads BEGIN
        UPDATE usage SET bytes = bytes - old.size; END;
    CREATE TRIGGER logs_in AFTER INSERT ON logs BEGIN
        UPDATE usage SET bytes = bytes + new.size; END;
    CREATE TRIGGER logs_out AFTER DELETE ON logs BEGIN
        UPDATE usage SET bytes = bytes - old.size; END;
    """,
    """
    ALTER TABLE jobs ADD COLUMN receiver TEXT;
    ALTER TABLE jobs ADD COLUMN brief INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN leaves_at REAL;
    CREATE INDEX jobs_that_leave ON jobs (leaves_at) WHERE leaves_at IS NOT NULL;
    CREATE TABLE webhooks (
        job INTEGER PRIMARY KEY, receiver TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL
    );
    CREATE INDEX webhooks_by_time ON webhooks (next_at);
    CREATE TRIGGER webhooks_in AFTER UPDATE OF ended_at ON jobs
        WHEN old.ended_at IS NULL AND new.ended_at IS NOT NULL AND new.receiver IS NOT NULL BEGIN
        INSERT INTO webhooks (job, receiver, next_at) VALUES (new.number, new.receiver, new.ended_at); END;
    CREATE TRIGGER webhooks_out AFTER DELETE ON jobs BEGIN
        DELETE FROM webhooks WHERE job = old.number; END;
    """,
    # Who opens the store asks for all files: without an index that would read all results. Earlier versions kept the
    # keys of clients in their envelopes.
    """
    CREATE INDEX payloads_in_files ON payloads (file) WHERE file IS NOT NULL;
    UPDATE jobs SET envelope = CAST(json_set(CAST(envelope AS TEXT), '$.headers', (
        SELECT json_group_array(json(value)) FROM json_each(CAST(envelope AS TEXT), '$.headers')
        WHERE lower(json_extract(value, '$[0]')) NOT IN ('authorization', 'proxy-authorization', 'cookie')
    )) AS BLOB) WHERE json_valid(CAST(envelope AS TEXT));
    UPDATE usage SET bytes = (SELECT coalesce(sum(512 + length(envelope)), 0) FROM jobs)
        + (SELECT coalesce(sum(size), 0) FROM payloads) + (SELECT coalesce(sum(size), 0) FROM logs);
    """,
)
"""Number *i* makes version i + 1 out of version i; 0 is an empty file. One that has been released is never changed."""

_NOT_CHECKED: Final = frozenset({"payloads", "logs"})
"""They may take gigabytes, and who reads what is damaged in them hears of it; the others are read whole anyway."""

_LOG_PAGES: Final = 4096
"""16 MiB of log between two checkpoints: at SQLite's 1000 pages, checkpoints took one fdatasync of every ten."""
_LOG_BYTES_KEPT: Final = 64 << 20


def open_database(path: Path) -> sqlite3.Connection:
    """
    Return a connection to the database at *path*, made or migrated as needed. Blocks, longer if the file is large.

    Raises:
        StartError: what is there is damaged, of another program, or of a newer falctl; it is left as it is.
    """
    try:
        _make_private(path)
        connection = connect(path)
        try:
            _make_ready(connection, path)
        except BaseException:
            connection.close()
            raise
        sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        msg = f"the job queue {path} cannot be opened: {error}; {_way_out(path)}"
        raise StartError(msg) from error
    return connection


def _make_private(path: Path) -> None:
    """Make *path* if it is not there, and keep others from it: SQLite gives its log the same mode."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_mode & 0o077:
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def connect(path: Path) -> sqlite3.Connection:
    """Return a further connection, for use by one thread at a time; transactions begin where the code says so."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)


def _make_ready(connection: sqlite3.Connection, path: Path) -> None:
    version, application = _pragma(connection, "user_version"), _pragma(connection, "application_id")
    empty = _pragma(connection, "schema_version") == 0
    if not empty and application != APPLICATION_ID:
        msg = f"{path} is a database of another program; {_way_out(path)}"
        raise StartError(msg)
    if version > len(MIGRATIONS):
        newest = len(MIGRATIONS)
        msg = f"{path} is of version {version}, and this falctl knows versions up to {newest}: run a newer falctl, or {_way_out(path)}"
        raise StartError(msg)
    for table in _tables(connection) - _NOT_CHECKED:
        if (found := connection.execute(f"PRAGMA quick_check({table})").fetchone()[0]) != "ok":
            msg = f"the job queue {path} is damaged ({found}); {_way_out(path)}"
            raise StartError(msg)
    _pragma(connection, "journal_mode = WAL")
    for setting in (
        "synchronous = FULL",
        "secure_delete = FAST",
        f"wal_autocheckpoint = {_LOG_PAGES}",
        f"journal_size_limit = {_LOG_BYTES_KEPT}",
    ):
        connection.execute(f"PRAGMA {setting}")
    for number in range(version, len(MIGRATIONS)):
        _migrate(connection, MIGRATIONS[number], version=number + 1)


def _migrate(connection: sqlite3.Connection, script: str, *, version: int) -> None:
    """Make *version* of its predecessor, as a whole or not at all."""
    header = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
    with closing(connection.cursor()) as cursor:
        try:
            cursor.executescript(f"BEGIN IMMEDIATE; {script}; {header} COMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def _way_out(path: Path) -> str:
    return f"to begin with an empty queue, move the folder {path.parent} away"
