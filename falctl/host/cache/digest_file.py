"""
The file in which the runners of this machine keep the digests of weight files: ``digests``, a line for each.

Hashing a model takes seconds, and every runner of every `falctl up` would do it again. Lines are only ever added, each
by one write, so that runners need no lock; a line that says something else than a line of ours is skipped, and the
file begins anew when it is too long. It is a convenience: without it, what it had is worked out again.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Final

from falctl.host.cache.headers import Stamp

log = logging.getLogger(__name__)

FILE_NAME: Final = "digests"
FILE_BYTES_MAX: Final = 4 << 20
"""Some 30,000 lines."""
_LINE: Final = re.compile(r"(\d{1,20}) (\d{1,20}) (\d{1,20}) (\d{1,20}) (\d{1,20}) ([0-9a-f]{64})")


class DigestFile:
    """Keeps digests in *folder*, which all runners of a machine share. Its methods block."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._read_bytes = 0

    def news(self) -> dict[Stamp, str]:
        """Return what the file has got since the last call."""
        try:
            with self._path.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                file.seek(self._read_bytes if self._read_bytes <= size_bytes else 0)
                content = file.read(FILE_BYTES_MAX)
                self._read_bytes = file.tell()
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("digests.ignored file=%s: %s", self._path, error)
            return {}
        matches = map(_LINE.fullmatch, content.decode(errors="replace").splitlines())
        return {Stamp(*map(int, m.groups()[:5])): m[6] for m in matches if m is not None}

    def add(self, stamp: Stamp, digest: str) -> None:
        """Keep *digest* for what bears *stamp*."""
        words = (stamp.device, stamp.inode, stamp.size_bytes, stamp.mtime_ns, stamp.ctime_ns, digest)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                if os.fstat(descriptor).st_size > FILE_BYTES_MAX:
                    os.ftruncate(descriptor, 0)
                # Begins a line of its own, after whatever a full disk has left of the last one.
                os.write(descriptor, b"\n%b\n" % " ".join(map(str, words)).encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("digests.not_kept file=%s: %s", self._path, error)
