"""`falctl record`: a trace of live traffic, until Ctrl-C, which `falctl replay` then runs."""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from falctl.cli.amounts import amount_of
from falctl.cli.server import read
from falctl.clock import monotonic_s
from falctl.errors import EXIT_OK, ConfigError, NotRunningError, StartError
from falctl.replay.recording import Form, Recorder, form_of

POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for, not checked yet. ``for_``: a duration as people write it, ``"10m"``."""

    path: Path
    hash_hints: bool = False
    for_: str | None = None
    app: str | None = None
    """Whose requests, among several apps."""


def record_command(options: Options) -> int:
    """
    Record until Ctrl-C, SIGTERM, the given time or the end of falctl. Blocks.

    Raises:
        NotRunningError: none runs at the start.
        ConfigError: the file is there already or cannot be written, or the duration is none.
    """
    until_at = None if options.for_ is None else monotonic_s() + _seconds(options.for_)
    recorder = Recorder(secrets.token_bytes(32), options.hash_hints)
    recorder.take(read(_ended(options.app)))
    trace = _Trace(options.path)
    stopped = _stopped_by_signals()
    _say(f"recording to {options.path}; Ctrl-C ends it")
    try:
        while not stopped.wait(POLL_S) and (until_at is None or monotonic_s() < until_at):
            _poll(recorder, trace, options.app)
        _poll(recorder, trace, options.app)
    except NotRunningError:
        _say("falctl has stopped")
    sys.stdout.write(summary(recorder, options.path) + "\n")
    return EXIT_OK


def summary(recorder: Recorder, path: Path) -> str:
    """Return what was recorded and what was not, in a few lines."""
    lines = [f"{path}: {recorder.recorded:,} request{'' if recorder.recorded == 1 else 's'}"]
    if recorder.failed:
        lines.append(f"  {recorder.failed:,} that failed or were cancelled are left out: they have no cost")
    if recorder.unfinished:
        lines.append(f"  {recorder.unfinished:,} have not ended yet and are not in it")
    if recorder.without_load:
        lines.append(
            f"  {recorder.without_load:,} have no load_s, as no load of their model was seen: replay with --load-s SECONDS"
        )
    return "\n".join(lines)


class _Trace:
    """The file. It appears with its header, and grows by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._form: Form = form_of(path)
        try:
            with path.open("xb", buffering=0) as file:
                file.write(self._form.text([], first=True))
        except FileExistsError:
            msg = f"{path} is there already; name another file, or remove it"
            raise ConfigError(msg) from None
        except OSError as error:
            raise self._failed(error) from error

    def add(self, rows: list[dict[str, object]]) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(self._form.text(rows, first=False))
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written ({error.strerror})")


def _ended(app: str | None, after: int | None = None) -> str:
    asked = {"after": after, "app": app}
    given = urllib.parse.urlencode({name: value for name, value in asked.items() if value is not None})
    return f"/falctl/ended?{given}"


def _poll(recorder: Recorder, trace: _Trace, app: str | None) -> None:
    """Take in everything that has ended by now, and say what is missing."""
    while True:
        lost, restarts = recorder.lost, recorder.restarts
        try:
            told = read(_ended(app, recorder.after))
        except StartError as error:
            _say(f"{error}; it is asked again")
            return
        rows = recorder.take(told)
        if rows:
            trace.add(rows)
        if recorder.lost > lost:
            _say(
                f"gap: {recorder.lost - lost:,} requests ended faster than they could be read, and are missing"
            )
        if recorder.restarts > restarts:
            _say("gap: the router was restarted; what ended just before is missing")
        if recorder.after is None or recorder.after >= told["count"]:
            return


def _stopped_by_signals() -> threading.Event:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _seconds(text: str) -> float:
    from falctl.config_values import parse_duration

    return amount_of("--for", text, parse_duration)


def _say(text: str) -> None:
    sys.stderr.write(f"falctl: {text}\n")
    sys.stderr.flush()
