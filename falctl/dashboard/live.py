"""The live view: draws the board until the person leaves or falctl ends. Reads only; the fleet never notices."""

from __future__ import annotations

import os
import signal
from typing import Final, Literal

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from falctl.board.board import Board
from falctl.clock import monotonic_s
from falctl.dashboard.snapshot import take
from falctl.dashboard.terminal import Terminal
from falctl.dashboard.view import render

TICK_S: Final = 0.25
"""The board is looked at this often; comparing its sequence words costs less than a microsecond."""

REDRAW_S: Final = 1.0
"""Ages move on even when nothing on the board does."""

Ending = Literal["left", "ended"]


def watch(board: Board, *, pid: int, console: Console) -> Ending:
    """
    Draw *board* on the whole screen of *console*, blocking, until the person leaves or process *pid* ends.

    The screen, the cursor and the keyboard are as before when this returns, also while it is suspended by Ctrl-Z.
    """
    try:
        ended_fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return "ended"
    try:
        while (outcome := _on_screen(board, ended_fd, console)) == "suspended":
            os.kill(os.getpid(), signal.SIGSTOP)
        return "left" if outcome == "left" else "ended"
    finally:
        os.close(ended_fd)


def _on_screen(board: Board, ended_fd: int, console: Console) -> Literal["left", "ended", "suspended"]:
    with (
        Terminal(ended_fd=ended_fd) as terminal,
        Live(
            console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live,
    ):
        seen, drawn_at = b"", 0.0
        while True:
            now, versions = monotonic_s(), board.versions()
            if versions != seen or now - drawn_at >= REDRAW_S:
                _draw(board, live, console, now=now)
                seen, drawn_at = versions, now
            event = terminal.wait(TICK_S)
            if event == "resized":
                seen = b""
            elif event != "tick":
                return event


def _draw(board: Board, live: Live, console: Console, *, now: float) -> None:
    size = _size(console)
    console.size = size  # COLUMNS and LINES of the environment would hold rich to the size at the start
    picture = render(
        take(board, now=now), width=size[0], height=size[1], ascii_only=console.options.ascii_only
    )
    live.update(picture, refresh=True)


def _size(console: Console) -> ConsoleDimensions:
    try:
        columns, lines = os.get_terminal_size(console.file.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    return ConsoleDimensions(columns or 80, lines or 24)
