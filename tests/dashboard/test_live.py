"""`falctl status` on a real terminal: it follows the board, the size and the end of falctl, and leaves no trace."""

from __future__ import annotations

import re
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len

from falctl.clock import monotonic_s
from falctl.errors import EXIT_NOT_RUNNING, EXIT_OK
from tests.dashboard.conftest import Writer
from tests.wait import PATIENCE_S
from tools.capture_status import CTRL_C, PtyScreen

pytestmark = pytest.mark.process

COMMAND = [sys.executable, "-m", "tests.dashboard.status_main"]
LEAVE_SCREEN = b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"


@pytest.fixture
def screen(writer: Writer) -> Iterator[PtyScreen]:
    with PtyScreen(COMMAND, columns=120, rows=36, env=writer.env) as opened:
        shows(opened, "q or Ctrl-C to leave")
        yield opened


def shows(screen: PtyScreen, text: str, *, within_s: float = PATIENCE_S) -> None:
    assert screen.until(lambda s: text in s.text, within_s=within_s), f"{text!r} is not on:\n{screen.text}"


def holds(
    screen: PtyScreen, condition: Callable[[PtyScreen], object], *, within_s: float = PATIENCE_S
) -> None:
    assert screen.until(condition, within_s=within_s), screen.text


def is_as_before(screen: PtyScreen) -> None:
    """The normal screen is back, the cursor is visible, and what is typed is echoed again."""
    assert screen.raw.rindex(LEAVE_SCREEN) > screen.raw.rindex(b"\x1b[?1049h")
    assert screen.raw.rindex(SHOW_CURSOR) > screen.raw.rindex(b"\x1b[?25l")
    assert termios.tcgetattr(screen.slave) == screen.modes_before


def test_it_shows_the_fleet_on_the_whole_screen(screen: PtyScreen) -> None:
    for text in ("http://127.0.0.1:8808", "runner 4  backoff", "◐ qwen-image loading", "8f14e45fceea"):
        shows(screen, text)
    assert len(screen.lines) == 36
    assert screen.lines[-1].endswith("q or Ctrl-C to leave")


def test_a_change_on_the_board_is_on_the_screen(screen: PtyScreen, writer: Writer) -> None:
    writer.hold("a-new-model")
    shows(screen, "● a-new-model ready")


def test_a_hostile_name_leaves_the_screen_alone(screen: PtyScreen, writer: Writer) -> None:
    writer.hold("\x1b[2J\x1b[H[red]evil\x1b]0;owned\x07\x9b5m")
    shows(screen, "[red]evil")
    assert "falctl 0.1.0" in screen.lines[0]
    assert b"\x1b]0;" not in screen.raw


def test_ages_move_on_while_the_writers_are_stopped_and_the_router_is_called_silent(
    screen: PtyScreen, writer: Writer
) -> None:
    writer.process.send_signal(signal.SIGSTOP)
    silent = re.compile(r"router has not answered for (\d+)\.")
    holds(screen, lambda s: silent.search(s.text))
    first = int(silent.findall(screen.text)[0])
    holds(screen, lambda s: (now := silent.search(s.text)) and int(now[1]) > first)
    assert "step 14/28" in screen.text
    writer.process.send_signal(signal.SIGCONT)
    holds(screen, lambda s: "router has not answered" not in s.text)


def test_it_follows_the_size_of_the_terminal(screen: PtyScreen) -> None:
    screen.resize(columns=60, rows=50)
    holds(screen, lambda s: s.lines[49].endswith("q or Ctrl-C to leave") and "TEMP" not in s.text)
    assert max(cell_len(line) for line in screen.lines) <= 60
    screen.resize(columns=160, rows=20)
    holds(screen, lambda s: s.lines[19].endswith("q or Ctrl-C to leave") and "TEMP" in s.text)
    assert "runner 0" in screen.text


def test_a_size_in_the_environment_does_not_hold_it(writer: Writer) -> None:
    env = {**writer.env, "COLUMNS": "60", "LINES": "10"}
    with PtyScreen(COMMAND, columns=120, rows=36, env=env) as screen:
        shows(screen, "q or Ctrl-C to leave")
        assert screen.lines[35].endswith("q or Ctrl-C to leave")
        assert "TEMP" in screen.text


@pytest.mark.parametrize("keys", [CTRL_C, b"q", b"Q"])
def test_the_person_leaves_and_the_terminal_is_as_before(screen: PtyScreen, keys: bytes) -> None:
    screen.send(keys)
    assert screen.end() == EXIT_OK
    is_as_before(screen)
    assert b"Traceback" not in screen.raw


def test_sigterm_leaves_the_terminal_as_before(screen: PtyScreen) -> None:
    screen.process.send_signal(signal.SIGTERM)
    assert screen.end() == EXIT_OK
    is_as_before(screen)


def test_keys_are_not_echoed_and_other_keys_do_nothing(screen: PtyScreen, writer: Writer) -> None:
    screen.send(b"zzzyyy\r")
    writer.hold("still-there")
    shows(screen, "still-there")
    assert "zzzyyy" not in screen.text


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(screen: PtyScreen, writer: Writer) -> None:
    screen.send(b"\x1a")
    holds(screen, lambda s: _state(s.process.pid) == "T")
    holds(screen, lambda s: s.raw.endswith(LEAVE_SCREEN + SHOW_CURSOR) or LEAVE_SCREEN in s.raw)
    is_as_before(screen)
    screen.process.send_signal(signal.SIGCONT)
    writer.hold("after-the-pause")
    shows(screen, "after-the-pause")
    screen.send(CTRL_C)
    assert screen.end() == EXIT_OK
    is_as_before(screen)


def test_it_ends_with_3_when_falctl_is_killed(screen: PtyScreen, writer: Writer) -> None:
    writer.kill()
    assert screen.end() == EXIT_NOT_RUNNING
    is_as_before(screen)
    assert screen.raw.endswith(b"falctl has stopped\r\n")


def test_it_lives_on_when_the_files_of_falctl_are_deleted(screen: PtyScreen, writer: Writer) -> None:
    writer.home.board.unlink()
    writer.home.lock.unlink()
    writer.hold("held-without-files")
    shows(screen, "held-without-files")


def test_without_a_terminal_type_it_prints_once(writer: Writer) -> None:
    with PtyScreen(COMMAND, columns=100, rows=40, env={**writer.env, "TERM": "dumb"}) as screen:
        assert screen.end() == EXIT_OK
        assert "runner 4  backoff" in screen.text
        assert b"\x1b[?1049h" not in screen.raw


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_it_draws_when_something_changed_and_otherwise_once_a_second(
    screen: PtyScreen, writer: Writer
) -> None:
    """The fleet beats five times a second; it is looked at four times a second."""
    began_at, before = monotonic_s(), _frames_so_far(screen)
    holds(screen, lambda s: _frames(s) - before > 6)
    assert _frames(screen) - before <= 4 * (monotonic_s() - began_at) + 1
    writer.process.send_signal(signal.SIGSTOP)
    began_at, before = monotonic_s(), _frames_so_far(screen)
    holds(screen, lambda s: _frames(s) - before > 3)
    assert _frames(screen) - before <= 1 * (monotonic_s() - began_at) + 2


def _frames_so_far(screen: PtyScreen) -> int:
    """Return how many have been drawn, those that wait in the terminal to be read included."""
    while screen._read(within_s=0.0):
        pass
    return _frames(screen)


def _frames(screen: PtyScreen) -> int:
    return screen.raw.count(b"\x1b[H \x1b[1mfalctl")
