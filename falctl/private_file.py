"""Files and folders that nobody but their owner reads; files are whole or not there."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_MODE: Final = 0o600


def write_private(path: Path, content: bytes, *, replace: bool = True) -> None:
    """
    Let *path* have *content*, durable; a reader sees the old file or the new one, never a part. Blocks.

    Without *replace* a file that somebody else has put there meanwhile stays. One writer at a time.

    Raises:
        OSError: the disk is full or broken; what was there is as it was, and nothing is left beside it.
    """
    draft = path.with_name(
        f".{path.name}.new"
    )  # one name, so that crashes leave one file, which the next removes
    draft.unlink(missing_ok=True)
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        if replace:
            draft.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable. Blocks. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private(*folders: Path) -> None:
    """Make those of *folders* that are not there, the outermost first, for nobody but their owner. Raises OSError."""
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
