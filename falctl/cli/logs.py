"""`falctl logs`: what falctl and its runners print in the background, or what an app has printed for one request."""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

from falctl.cli.server import read
from falctl.clock import wall_clock
from falctl.errors import EXIT_OK, ConfigError, NotRunningError, StartError
from falctl.home import Home, find_home, find_instance, is_locked

POLL_S: Final = 0.5
_TAIL_BYTES: Final = 1 << 20
"""How far back the last lines are looked for."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for; ``lines`` is how many of the last to begin with."""

    request: str | None = None
    follow: bool = False
    lines: int = 200
    as_json: bool = False


def logs_command(options: Options) -> int:
    """
    Print, and, if that is asked for, follow until Ctrl-C or the end of the request. Blocks.

    Raises:
        FalctlError: there is nothing to print, and why.
    """
    try:
        if options.request is not None:
            _print_request(options.request, options)
        elif options.as_json:
            msg = "--json goes with --request ID; the log of a detached falctl is plain text"
            raise ConfigError(msg)
        else:
            _print_log(find_home(), options)
    except KeyboardInterrupt:
        sys.stdout.flush()
    return EXIT_OK


# --- one request ---------------------------------------------------------------------------------


def _print_request(request: str, options: Options) -> None:
    shown = 0
    for told in _told(request, follow=options.follow):
        shown += len(told["lines"])
        if options.as_json and not options.follow:
            _say(json.dumps(told))
            return
        for line in told["lines"]:
            _say(json.dumps(line) if options.as_json else _line(line))
        if not shown and not options.follow:
            sys.stderr.write(f"request {_safe(told['request'])} {_STATES[told['state']]}\n")


_STATES: Final = {
    "waiting": "waits for a runner; its app has printed nothing for it",
    "running": "runs; its app has printed nothing for it so far",
    "ended": "has ended; its app printed nothing for it",
}


def _told(request: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        told = read(f"/falctl/logs/{urllib.parse.quote(request, safe='')}?after={after}")
        request, after = told["request"], told["next"]
        yield told
        if not follow or told["state"] == "ended":
            return
        threading.Event().wait(POLL_S)


def _line(line: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(line["at"], tz=wall_clock().tzinfo)
    head = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {line['level']:<6} "
    first, *rest = [_safe(text) for text in line["message"].split("\n")]
    return "\n".join([head + first, *(" " * len(head) + text for text in rest)])


def _safe(text: str) -> str:
    """Return *text* with what would steer a terminal written out."""
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


# --- the log of a detached falctl ----------------------------------------------------------------


def _print_log(home: Home, options: Options) -> None:
    _check_detached(home)
    try:
        file = home.log.open(encoding="utf-8", errors="replace")
    except OSError:
        msg = "there is no log: `falctl up -d` writes one, and in a terminal falctl prints to that"
        raise StartError(msg) from None
    with file:
        for line in _tail(file, options.lines):
            sys.stdout.write(line)
        sys.stdout.flush()
        if options.follow:
            _follow(file, home)


def _check_detached(home: Home) -> None:
    """Refuse to show an old log for a falctl that prints elsewhere."""
    try:
        instance = find_instance(home)
    except NotRunningError:
        return  # its last words may be what is looked for
    if not instance.detached:
        msg = (
            f"this falctl (pid {instance.pid}) prints to the terminal in which it was started; "
            "`falctl logs --request ID` shows one request"
        )
        raise StartError(msg)


def _tail(file: TextIO, count: int) -> list[str]:
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL_BYTES, 0))
    lines = file.readlines()
    return lines[len(lines) - min(count, len(lines)) :]


def _follow(file: TextIO, home: Home) -> None:
    """Print what is appended until falctl has ended. A log that was set aside belongs to one that has."""
    while True:
        running = is_locked(home)  # asked before reading: what was written by its end is printed
        while chunk := file.read(1 << 16):
            sys.stdout.write(chunk)
        sys.stdout.flush()
        if not running or _was_set_aside(file, home.log):
            return
        threading.Event().wait(POLL_S)


def _was_set_aside(file: TextIO, path: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
