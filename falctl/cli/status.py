"""`falctl status`: the fleet live on a terminal, once as text, or once as JSON. Imports rich and nothing heavier."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from falctl.board.board import Board
from falctl.clock import monotonic_s
from falctl.dashboard.snapshot import FleetSnapshot, take
from falctl.dashboard.view import render
from falctl.errors import EXIT_NOT_RUNNING, EXIT_OK, FalctlError, NotRunningError
from falctl.home import Home, find_home, find_instance

SCHEMA: Final = 1
"""Version of docs/status-schema.json. A new field does not raise it; a removed or changed one does."""


def status_command(*, once: bool, json_output: bool, no_color: bool) -> int:
    """
    Show the fleet on standard output and return the exit code: 3, after one line on standard error, when none runs.

    Live, and blocking until the person leaves, on a terminal; once for *once*, for a pipe and for a dumb terminal.
    """
    try:
        return _status(once=once, json_output=json_output, no_color=no_color)
    except FalctlError as error:
        sys.stderr.write(f"falctl: {error}\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader, `head` perhaps, has enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def document(snapshot: FleetSnapshot) -> dict[str, Any]:
    """Return what ``--json`` prints: *snapshot* as docs/status-schema.json describes it."""
    return {"schema": SCHEMA, **asdict(snapshot)}


def open_board(home: Home, pid: int) -> Board:
    """
    Return the board of the falctl with this *pid*; through its own descriptor when the file was deleted.

    Raises:
        NotRunningError: it has none yet.
        FalctlError: it is a board of another version.
    """
    try:
        board = Board.open(home.board)
    except NotRunningError:
        board = Board.open(_deleted_board(home, pid))
    fleet = board.fleet()
    if fleet is None or fleet.pid == pid:
        return board
    board.close()  # A dead predecessor's, which its successor is about to replace.
    raise NotRunningError(_STARTING)


_STARTING: Final = "falctl is starting; try again in a moment"


def _deleted_board(home: Home, pid: int) -> Path:
    wanted = f"{home.root.resolve() / home.board.name} (deleted)"
    descriptors = Path(f"/proc/{pid}/fd")
    try:
        for link in descriptors.iterdir():
            if _target(link) == wanted:
                return link
    except OSError as error:
        raise NotRunningError(_STARTING) from error
    raise NotRunningError(_STARTING)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # Closed since it was listed.
        return ""


def _status(*, once: bool, json_output: bool, no_color: bool) -> int:
    home = find_home()
    instance = find_instance(home)
    board = open_board(home, instance.pid)
    try:
        if json_output:
            json.dump(document(take(board, now=monotonic_s())), sys.stdout)
            sys.stdout.write("\n")
            sys.stdout.flush()
            return EXIT_OK
        console = Console(no_color=no_color or None, highlight=False, markup=False, emoji=False)
        if once or not console.is_terminal or console.is_dumb_terminal:
            _print_once(board, console)
            return EXIT_OK
        return _live(board, instance.pid, console)
    finally:
        board.close()


def _print_once(board: Board, console: Console) -> None:
    snapshot = take(board, now=monotonic_s())
    with console.capture() as printed:  # rich would answer a closed pipe with exit code 1
        console.print(render(snapshot, width=console.width, ascii_only=console.options.ascii_only))
    sys.stdout.write(printed.get())
    sys.stdout.flush()


def _live(board: Board, pid: int, console: Console) -> int:
    from falctl.dashboard.live import watch

    if watch(board, pid=pid, console=console) == "left":
        return EXIT_OK
    sys.stdout.write("falctl has stopped\n")
    return EXIT_NOT_RUNNING
