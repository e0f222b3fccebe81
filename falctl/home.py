"""The one place per user where falctl keeps its files, and the lock that says who runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import stat
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from falctl.errors import ConfigError, NotRunningError

ENV: Final = "FALCTL_HOME"
_TRIES: Final = 5
_BETWEEN_TRIES_S: Final = 0.02

SOCKET_PATH_BYTES_MAX: Final = 100
"""sun_path holds 108 bytes on Linux (unix(7)); we stay under with some room."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A running falctl, as its lock file tells it."""

    pid: int
    url: str
    detached: bool
    tls_url: str = ""
    """Where it speaks TLS; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under the state directory; creating one of these touches nothing."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def board(self) -> Path:
        return self.root / "board"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def uploads(self) -> Path:
        """Files that clients are sending; on the same disk as `files`, where they are moved when they are whole."""
        return self.root / "uploads"

    @property
    def tls(self) -> Path:
        """Certificates and keys of the TLS port; they outlive falctl, as clients trust them."""
        return self.root / "tls"

    @property
    def tls_bundle(self) -> Path:
        """The authorities that a client of the TLS port is to trust, ours among them."""
        return self.tls / "bundle.pem"

    @property
    def data(self) -> Path:
        """What apps of fal know as ``/data``; it outlives falctl."""
        return self.root / "data"

    @property
    def sockets(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / "falctl.log"

    @property
    def learnt(self) -> Path:
        """What the router has learnt of costs and demand; it outlives falctl."""
        return self.root / "learnt.json"

    @property
    def jobs(self) -> Path:
        """The durable queue; it outlives falctl."""
        return self.root / "jobs"

    @property
    def token_secret(self) -> Path:
        """What the tokens of fal's clients are signed with; it outlives falctl."""
        return self.root / "token-secret"

    @property
    def webhook_key(self) -> Path:
        """The private key that signs webhooks; it outlives falctl."""
        return self.root / "webhook.key"

    def runner_socket(self, runner: int, epoch: int) -> Path:
        """Return the Unix socket of one incarnation of one runner."""
        return self.sockets / f"r{runner}-{epoch}.sock"

    def make_root(self) -> None:
        """
        Make the directory itself, with mode 0700 whatever it had.

        Raises:
            ConfigError: it cannot be made, or belongs to somebody else.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.root.stat()
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != 0o700:
                self.root.chmod(0o700)
        except OSError as error:
            msg = f"cannot use {self.root} for falctl's state ({error.strerror}); set {ENV} to a directory you own"
            raise ConfigError(msg) from error
        if status.st_uid != os.geteuid():
            msg = f"{self.root} belongs to uid {status.st_uid}, not to you; set {ENV} to a directory you own"
            raise ConfigError(msg)

    def create(self) -> None:
        """
        Make the folders in it and empty what a dead predecessor left. Call with the lock held.

        Raises:
            ConfigError: its path is too long for a Unix socket, or there is no room in it.
        """
        if len(os.fsencode(self.runner_socket(999, 999_999))) > SOCKET_PATH_BYTES_MAX:
            msg = f"{ENV}={self.root} is too long for Unix sockets ({SOCKET_PATH_BYTES_MAX} bytes); choose a shorter one"
            raise ConfigError(msg)
        shutil.rmtree(self.sockets, ignore_errors=True)
        self.make_folders()

    def make_folders(self) -> None:
        """Make the folders that are not there. Raises ConfigError: they cannot be made."""
        for folder in (self.sockets, self.files):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                msg = f"cannot make {folder} ({error.strerror}); make room, or set {ENV} to another directory"
                raise ConfigError(msg) from error


def find_home() -> Home:
    """Return $FALCTL_HOME, else ``.local/state/falctl`` under the passwd home of the effective uid."""
    if named := os.environ.get(ENV):
        return Home(Path(named).absolute())
    return Home(Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".local" / "state" / "falctl")


class Lock:
    """The exclusive lock of a running falctl. The kernel drops it when its holder dies, however it dies."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._fd = -1

    def acquire(self) -> None:
        """
        Take the lock.

        Raises:
            ConfigError: the directory is not ours, or another falctl of this user runs; names it.
        """
        self._home.make_root()
        try:
            fd = os.open(self._home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"cannot open {self._home.lock} ({error.strerror}); delete it, or set {ENV} to another directory"
            raise ConfigError(msg) from error
        if not _take(fd):
            os.close(fd)
            other = _read_instance(self._home)
            who = f"pid {other.pid}, {other.url}" if other else "starting"
            msg = f"falctl is already running ({who}); stop it with `falctl down`, or set {ENV} for a second one"
            raise ConfigError(msg)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        os.ftruncate(
            fd, 0
        )  # what a dead predecessor wrote must not pass for us until we `describe` ourselves

    def describe(self, instance: Instance) -> None:
        """Write who we are, for `find_instance`."""
        text = json.dumps(asdict(instance)).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def is_there(self) -> bool:
        """Return whether the file that we hold is still the one under its name."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._home.lock.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Give the lock back; the file stays, so that two processes never lock different files."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def find_instance(home: Home) -> Instance:
    """
    Return the falctl that runs in *home*.

    Raises:
        NotRunningError: none does, or it has just begun to start.
    """
    if not is_locked(home):
        msg = "falctl is not running; start it with `falctl up`"
        raise NotRunningError(msg)
    if (instance := _read_instance(home)) is None:
        msg = "falctl is starting; try again in a moment"
        raise NotRunningError(msg)
    return instance


def is_locked(home: Home) -> bool:
    """Return whether some process holds the lock of *home* now."""
    try:
        fd = os.open(home.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _take(fd: int) -> bool:
    """Take the lock; not at the first try only, because `is_locked` holds it for an instant to look."""
    for _ in range(_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        threading.Event().wait(_BETWEEN_TRIES_S)
    return False


def _read_instance(home: Home) -> Instance | None:
    try:
        return Instance(**json.loads(home.lock.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
