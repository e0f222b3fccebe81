"""Requests and results too large for the database: a file each, on the disk before the row that names it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from falctl.private_file import make_private, sync_folder

INLINE_BYTES_MAX: Final = 64 << 10
"""What is larger would fill the write-ahead log twice over, and make all who commit with it wait."""


class Bodies:
    """Owner of a folder of such files. Every method blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_private(folder)

    def write(self, content: bytes) -> str:
        """
        Return the name of a new file of *content*; both are durable.

        Raises:
            OSError: the disk is full or broken; no file is left behind.
        """
        name = secrets.token_hex(16)
        path = self._folder / name
        try:
            with os.fdopen(self._create(path), "wb", buffering=0) as file:
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            sync_folder(self._folder)
        except OSError:
            self.discard([name])
            raise
        return name

    def _create(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:  # the folder was wiped while falctl ran
            make_private(self._folder.parent.parent, self._folder.parent, self._folder)
            return os.open(path, flags, 0o600)

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return (self._folder / name).exists()

    def read(self, name: str) -> bytes:
        """Return the content of the file of that name. Raises OSError."""
        return (self._folder / name).read_bytes()

    def discard(self, names: Iterable[str]) -> None:
        """Delete the files of these names; one that is not there is fine, one that stays is found by `keep_only`."""
        for name in names:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def keep_only(self, names: Collection[str]) -> int:
        """Delete what no row names: what was written when the power went. Return how many files that were."""
        strangers = [path.name for path in self._folder.iterdir() if path.name not in names]
        self.discard(strangers)
        return len(strangers)
