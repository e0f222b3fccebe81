"""
The files that apps and clients have stored: served by their unguessable names, deleted when they are old.

A name may say when its file ends (`falctl.core.lifetimes`); the others are kept for `files.keep`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from falctl.clock import wall_s
from falctl.core.lifetimes import ends_at

log = logging.getLogger(__name__)

CONTENT_TYPES: Final = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "mov": "video/quicktime",
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
    "zip": "application/zip",
    "bin": "application/octet-stream",
}
"""Nothing that a browser would run: no HTML, no SVG, no script."""

_NAME_BYTES: Final = 24
"""192 random bits: whoever does not know the URL does not find the file."""
_OTHER: Final = "bin"
_SUFFIXES: Final = {kind.partition(";")[0]: suffix for suffix, kind in reversed(CONTENT_TYPES.items())}
_NAME: Final = re.compile(rf"([A-Za-z0-9_-]{{20,200}})(?:\.x[0-9]{{1,12}})?\.({'|'.join(CONTENT_TYPES)})")
_SWEEPS_PER_KEEP: Final = 10
_SWEEP_MIN_S: Final = 1.0
_SWEEP_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that is open for reading; whoever gets it closes *fd*."""

    fd: int
    size_bytes: int
    content_type: str


def new_name(file_name: str, content_type: str, *, mark: str = "") -> str:
    """
    Return a name for a file of a client's: unguessable, ending as its own name or type wants if that is one of ours.

    *mark* says in it how long it is kept (`falctl.core.lifetimes`).
    """
    suffix = file_name.rpartition(".")[2].lower()
    if suffix not in CONTENT_TYPES or suffix == _OTHER:
        suffix = _SUFFIXES.get(content_type.partition(";")[0].strip().lower(), _OTHER)
    return f"{secrets.token_urlsafe(_NAME_BYTES)}{mark}.{suffix}"


def is_name(text: str) -> bool:
    """Return whether *text* is the name of a file that may be here."""
    return _NAME.fullmatch(text) is not None


class FileStore:
    """The folder of stored files. ``keep_s`` is changed by a reload."""

    def __init__(self, folder: Path, *, keep_s: float) -> None:
        self._folder = folder
        self.keep_s = keep_s
        self._complained = False

    def open(self, name: str) -> StoredFile | None:
        """Return the file of that name, not following links; None if there is none, its time is over, or it is not ours."""
        match = _NAME.fullmatch(name)
        if match is None or ends_at(name, otherwise=math.inf) <= wall_s():
            return None
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return None
        return StoredFile(fd, status.st_size, CONTENT_TYPES[match[2]])

    async def sweep_for_ever(self) -> None:
        """Delete those whose time is over, again and again, in a thread."""
        while True:
            await asyncio.to_thread(self.sweep)
            await asyncio.sleep(min(max(self.keep_s / _SWEEPS_PER_KEEP, _SWEEP_MIN_S), _SWEEP_MAX_S))

    def sweep(self) -> int:
        """Delete those whose time is over, by their names or else by `keep_s`; return how many that were. Blocks."""
        deleted = 0
        # A file's age is between two wall-clock times; there is no monotonic time on a file.
        now = wall_s()
        with self._no_matter_what(), os.scandir(self._folder) as entries:
            for entry in entries:
                with self._no_matter_what():
                    status = entry.stat(follow_symlinks=False)
                    end = ends_at(entry.name, otherwise=status.st_mtime + self.keep_s)
                    if stat.S_ISREG(status.st_mode) and end < now:
                        (self._folder / entry.name).unlink()
                        deleted += 1
        if deleted:
            log.debug("files.deleted count=%d", deleted)
        return deleted

    @contextmanager
    def _no_matter_what(self) -> Iterator[None]:
        """One file must not keep the others from being deleted; the first error is logged, further ones repeat it."""
        try:
            yield
        except FileNotFoundError:
            pass  # somebody else has deleted it
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("files.not_deleted error=%s", error)
