"""
The file in which the runners of this machine keep what they have learnt of drawings: ``peaks.json``.

It is a convenience: one that cannot be read is ignored as a whole and replaced by the next write, one that cannot be
written costs what was learnt since, and either is one line in the log. Each runner writes what it knows and what the
file has, by the maximum, under a lock of the folder, so that none undoes another's; a new file takes the old one's name
when it is whole on disk.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from falctl.core.peaks import LearntPeaks
from falctl.private_file import write_private

log = logging.getLogger(__name__)

FILE_NAME: Final = "peaks.json"
FILE_BYTES_MAX: Final = 4 << 20
"""1,024 kinds with long names take 0.2 MB; more is no file of ours."""


class PeakFile:
    """Keeps *peaks* in *folder*, which all runners of a machine share. Its methods block."""

    def __init__(self, folder: Path, peaks: LearntPeaks) -> None:
        self._path = folder / FILE_NAME
        self._peaks = peaks
        self._failed = False

    def recall(self) -> None:
        """Take over what the file has."""
        found = self._read()
        if found is not None:
            self._peaks.merge(found)

    def keep(self) -> None:
        """Write what is known, and take over what other runners have written since."""
        try:
            with _locked(self._path.parent):
                found = self._read()
                if found is not None:
                    self._peaks.merge(found)
                    if found.dump()["peaks"] == self._peaks.dump()["peaks"]:
                        return
                write_private(self._path, json.dumps(self._peaks.dump(), separators=(",", ":")).encode())
        except OSError as error:
            if not self._failed:
                log.warning("peaks.not_kept file=%s: %s; tried again", self._path, error)
            self._failed = True
        else:
            self._failed = False

    def _read(self) -> LearntPeaks | None:
        try:
            return _parsed(self._path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            log.warning("peaks.ignored file=%s: %s; peaks are learnt anew", self._path, error)
            return None


def _parsed(path: Path) -> LearntPeaks:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        msg = f"it is over {FILE_BYTES_MAX >> 20} MiB"
        raise ValueError(msg)
    return LearntPeaks.restored(json.loads(content))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold *folder*'s lock, which ends with its holder, for a block; blocks until it is free. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
