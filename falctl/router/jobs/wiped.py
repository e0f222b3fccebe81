"""
What the store does when its folder is wiped while it runs: all that its open file still holds goes into a new one.

A file that was deleted is whole for whoever has it open, so that nothing in it is lost unless the router ends first.
Bodies in files of their own are lost with their folder.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Final

from falctl.errors import StartError
from falctl.private_file import make_private, sync_folder
from falctl.router.jobs import rows
from falctl.router.jobs.bodies import Bodies
from falctl.router.jobs.database import open_database

log = logging.getLogger(__name__)

_HALF: Final = "jobs.new"


class Place:
    """Where the database should be, and whether it is."""

    def __init__(self, path: Path, bodies: Bodies) -> None:
        """*path* is that of a file which is there now."""
        self.path = path
        self._bodies = bodies
        self._inode = path.stat().st_ino
        self._drop_half()  # of a router that was killed in the middle of it

    @property
    def holds(self) -> bool:
        """Return whether the file that was opened is still the one in its place."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def put_back(self, old: sqlite3.Connection) -> sqlite3.Connection:
        """
        Return a connection to a new database with all that *old* holds, and close that. Blocks.

        SQLite leaves alone what stands in the place of a log that was moved, so that closing the old is safe.

        Raises:
            OSError, sqlite3.Error: it cannot be made now, or another database is in the place; *old* can still be used.
        """
        folder = self.path.parent
        make_private(folder.parent, folder)
        half = folder / _HALF
        self._drop_half()
        if self.path.exists() and self.path.stat().st_size:
            msg = f"{self.path} was replaced while falctl ran; start falctl again to use what is there"
            raise OSError(msg)
        new = sqlite3.connect(half)
        try:
            old.backup(new)
        finally:
            new.close()
        for log_file in folder.glob(f"{self.path.name}-*"):
            log_file.unlink(missing_ok=True)
        half.chmod(0o600)
        half.rename(self.path)
        sync_folder(folder)
        try:
            connection = open_database(self.path)
        except StartError as error:
            raise OSError(str(error)) from error
        self._inode = self.path.stat().st_ino
        self._say(connection)
        old.close()
        return connection

    def _drop_half(self) -> None:
        for half in self.path.parent.glob(f"{_HALF}*"):
            half.unlink()

    def _say(self, connection: sqlite3.Connection) -> None:
        to_do, ended = rows.counts(connection)
        lost = sum(not self._bodies.has(file) for file in rows.files_named(connection))
        log.error(
            "jobs.wiped %s was deleted while falctl ran: put back with %d waiting or running jobs and %d ended ones; "
            "%d requests and results larger than 64 KiB are lost",
            self.path,
            to_do,
            ended,
            lost,
        )
