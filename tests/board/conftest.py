"""A board to write on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.board.board import Board


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A writable board of two runners and two GPUs at ``tmp_path / "board"``."""
    made = Board.create(tmp_path / "board", runners=2, gpus=2)
    yield made
    made.close()
