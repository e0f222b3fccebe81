"""Folders of this installation that nobody but their owner reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from falctl.private_file import sync_folder, write_private

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_private", "sync_folder", "write_private"]


def make_private(*folders: Path) -> None:
    """Make those of *folders* that are not there, the outermost first, for nobody but their owner. Raises OSError."""
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
