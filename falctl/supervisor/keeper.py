"""Keeps the state directory whole while we run: the lock, the token, the folders, whoever wipes them."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets

from falctl.errors import ConfigError
from falctl.home import ENV, Home, Instance, Lock

log = logging.getLogger(__name__)


class Keeper:
    """Holds the lock of *home* for this process, and puts back what is unlinked while we run."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.token = secrets.token_urlsafe(32)
        self._lock = Lock(home)
        self._instance: Instance | None = None

    def take(self) -> None:
        """Take the lock and lay the directory out. Raises ConfigError: another falctl has it, or it is not ours."""
        self._lock.acquire()
        self.home.create()
        self._write_token()

    def describe(self, instance: Instance) -> None:
        """Write into the lock file who we are."""
        self._instance = instance
        self._lock.describe(instance)

    def heal(self) -> None:
        """Put back what somebody has unlinked. Never raises: the directory may be gone for good."""
        with contextlib.suppress(OSError, ConfigError):
            if not self._lock.is_there():
                log.warning("home.wiped %s: putting the lock back", self.home.root)
                self._lock.acquire()
                if self._instance is not None:
                    self._lock.describe(self._instance)
            if not self.home.token.exists():
                self._write_token()
            self.home.make_folders()

    def release(self) -> None:
        """Take our traces out of the directory, unless it is another's by now; stored images stay until they are old."""
        if self._lock.is_there():
            for path in (self.home.token, self.home.board, *self.home.sockets.glob("*.sock")):
                with contextlib.suppress(OSError):
                    path.unlink()
        self._lock.release()

    def _write_token(self) -> None:
        path = self.home.token
        try:
            path.unlink(missing_ok=True)  # whoever had an old one open, or made it readable, gets nothing new
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(self.token)
        except OSError as error:
            msg = f"cannot write {path} ({error.strerror}); make room, or set {ENV} to another directory"
            raise ConfigError(msg) from error
