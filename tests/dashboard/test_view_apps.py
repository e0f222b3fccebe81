"""The view names the apps, and only where there are several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from falctl.board.board import Board
from falctl.dashboard.snapshot import FleetSnapshot, take
from tests.dashboard.fleets import NOW, put_busy
from tests.dashboard.reading import lines as lines_of


@pytest.fixture
def busy(tmp_path: Path) -> FleetSnapshot:
    board = Board.create(tmp_path / "board", runners=5, gpus=4)
    try:
        put_busy(board)
        for runner in range(5):
            life = board.life(runner)
            assert life is not None
            board.put_life(runner, replace(life, app="draw" if runner < 3 else "a-name-that-is-long"))
        router = board.router()
        assert router is not None
        board.put_router(replace(router, queue=tuple(replace(q, app="speak") for q in router.queue)))
        return take(board, now=NOW)
    finally:
        board.close()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_each_runner_and_each_request_is_shown_with_its_app(busy: FleetSnapshot, width: int) -> None:
    lines = lines_of(busy, width=width)
    shown = "\n".join(lines)
    assert "runner 0 draw" in shown
    assert "runner 3 a-name-th" in shown
    assert any("speak flux.1-dev" in line for line in lines)
    assert any("speak any runner" in line for line in lines)
    assert all(len(line) <= width for line in lines)


def test_one_app_is_not_repeated_on_every_line(busy: FleetSnapshot) -> None:
    alone = replace(
        busy,
        runners=tuple(replace(r, app="") for r in busy.runners),
        queue=tuple(replace(q, app="") for q in busy.queue),
    )
    shown = "\n".join(lines_of(alone, width=120))
    assert "runner 0  ready" in shown
    assert "draw" not in shown
    assert "speak" not in shown
