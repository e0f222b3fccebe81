"""`falctl load`, `unload`, `pin`, `unpin`: what a person wants of a model, and what became of that, in a line."""

from __future__ import annotations

import sys
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from rich.cells import cell_len

from falctl.cli.server import RefusedError, post, post_lines
from falctl.dashboard.cells import ASCII, UNICODE, Pen, latency
from falctl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ConfigError, FalctlError

Facts: TypeAlias = dict[str, Any]
Deed: TypeAlias = Literal["unload", "pin", "unpin"]

_BAR_CELLS: Final = 24
_NAME_CELLS: Final = 60
_LOAD_TIERS: Final = ("vram", "ram")
_MISTAKES: Final = (400, 404)
_PEN: Final = Pen()
_UNTOLD: Final = "may be loaded yet: the router ended before it could tell; what has begun goes on, and the same command waits for it"


@dataclass(frozen=True, slots=True)
class Options:
    """Which model, and where; None: not said."""

    model: str
    runner: int | None = None
    app: str | None = None
    tier: str | None = None

    def path(self, deed: str) -> str:
        """Return the path that asks for *deed*."""
        said = {"model": self.model, "runner": self.runner, "app": self.app, "tier": self.tier}
        given = {key: value for key, value in said.items() if value is not None}
        return f"/falctl/{deed}?{urllib.parse.urlencode(given, errors='surrogatepass')}"


def load_command(options: Options) -> int:
    """
    Have the model loaded, show how far it is on a terminal, and print how it ended; blocks until then.

    Returns 1 if it failed. Ctrl-C leaves; the load goes on. Raises FalctlError: none runs, or it refuses.
    """
    _check_tier(options.tier, _LOAD_TIERS)
    last: Facts = {}
    progress = _Progress()
    try:
        for last in post_lines(options.path("load")):
            progress.show(_how_far(last))
    except RefusedError as error:
        raise _mistake(error) from None
    except KeyboardInterrupt:
        progress.clear()
        sys.stderr.write("falctl: left; what was begun goes on, `falctl status` shows it\n")
        return EXIT_INTERRUPTED
    progress.clear()
    if last.get("state") not in ("loaded", "there"):
        detail = f"is not loaded: {last['detail']}" if "detail" in last else _UNTOLD
        sys.stderr.write(f"falctl: {_name(options.model)} {detail}\n")
        return EXIT_FAILED
    sys.stdout.write(f"{_outcome(last)}\n")
    return EXIT_OK


def change_command(deed: Deed, options: Options) -> int:
    """Have *deed* done where it applies; blocks until it is. Raises FalctlError: none runs, or it refuses."""
    if deed == "unload":
        _check_tier(options.tier, ("ram", "disk"))
    try:
        told = post(options.path(deed), timeout_s=None)
    except RefusedError as error:
        raise _mistake(error) from None
    name = _name(told["model"])
    for row in told["runners"]:
        sys.stdout.write(f"{name} {_DONE[deed](row)} on runner {row['runner']}{_rest(deed, row)}\n")
    return EXIT_OK


def _unloaded(row: Facts) -> str:
    if row["tier"] == "ram":
        return "is in host memory" if row["changed"] else "was in host memory"
    return "is unloaded" if row["changed"] else "was not loaded"


def _pinned(row: Facts) -> str:
    return "is pinned" if row["changed"] else "was pinned"


def _unpinned(row: Facts) -> str:
    return "may leave again" if row["changed"] else "was not pinned"


_DONE: Final = {"unload": _unloaded, "pin": _pinned, "unpin": _unpinned}


def _rest(deed: Deed, row: Facts) -> str:
    return ", where it is being loaded" if deed == "pin" and row["tier"] != "vram" else ""


def _mistake(error: RefusedError) -> FalctlError:
    """Return *error* with exit code 2 if what was written is wrong."""
    return ConfigError(str(error)) if error.status in _MISTAKES else error


def _check_tier(tier: str | None, known: Iterable[str]) -> None:
    if tier is not None and tier not in known:
        msg = f"--tier {tier}: write {' or '.join(known)}"
        raise ConfigError(msg)


def _outcome(told: Facts) -> str:
    """Return the one line that says where the model is now, and what that took."""
    name, runner = _name(told["model"]), told["runner"]
    if told["state"] == "there":
        # What was wanted in host memory may be on the card, too.
        where = "in host memory" if told.get("tier") == "ram" else f"on runner {runner}"
        return f"{name} is {where} already"
    if told["tier"] == "ram":
        return f"{name} is loaded into host memory, by runner {runner}"
    source = f" from {_SOURCES[told['from']]}" if told["from"] in _SOURCES else ""
    return f"{name} is loaded on runner {runner} in {latency(told['load_s'])}{source}"


_SOURCES: Final = {"ram": "host memory", "disk": "disk"}


def _how_far(told: Facts) -> str:
    """Return what stands on the terminal meanwhile; empty: nothing does."""
    if told["state"] == "waiting":
        return f"{_name(told['model'])} waits for a runner that can load it"
    if told["state"] != "loading":
        return ""
    evicts = f", evicting {', '.join(map(_name, told['evict']))}" if told["evict"] else ""
    text = f"{_name(told['model'])} loads on runner {told['runner']}{evicts}"
    if (done := told.get("fraction")) is None:
        return text
    glyphs = UNICODE if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII
    full = round(done * _BAR_CELLS)
    return f"{glyphs.bar * full}{glyphs.bar_rest * (_BAR_CELLS - full)} {100 * done:3.0f} %  {text}"


class _Progress:
    """One line on a terminal, written over; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._cells = 0

    def show(self, text: str) -> None:
        if not text:
            self.clear()
        elif self._live:
            line = _PEN.cut(text, cells=_columns() - 1)
            sys.stderr.write(f"\r{line}{' ' * max(0, self._cells - cell_len(line))}")
            sys.stderr.flush()
            self._cells = cell_len(line)

    def clear(self) -> None:
        if self._cells:
            sys.stderr.write(f"\r{' ' * self._cells}\r")
            sys.stderr.flush()
            self._cells = 0


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _name(model: str) -> str:
    return _PEN.safe(model, cells=_NAME_CELLS)
