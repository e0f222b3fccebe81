"""Reads a picture back as what a person sees: plain lines."""

from __future__ import annotations

import io

from rich.console import Console

from falctl.dashboard.snapshot import FleetSnapshot
from falctl.dashboard.view import render


def printed(
    snapshot: FleetSnapshot,
    *,
    width: int,
    height: int | None = None,
    ascii_only: bool = False,
    colours: bool = False,
) -> str:
    """Return all that a terminal of *width* would be sent."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width + 50,  # rich would crop at its own width; ours must not need that
        force_terminal=colours,
        color_system="truecolor" if colours else None,
        legacy_windows=False,
        _environ={},
    )
    console.print(render(snapshot, width=width, height=height, ascii_only=ascii_only))
    return out.getvalue()


def lines(
    snapshot: FleetSnapshot, *, width: int, height: int | None = None, ascii_only: bool = False
) -> list[str]:
    """Return the lines without colours."""
    return printed(snapshot, width=width, height=height, ascii_only=ascii_only).split("\n")[:-1]


def line_with(text: str, among: list[str]) -> str:
    """Return the one line that holds *text*."""
    found = [line for line in among if text in line]
    assert len(found) == 1, f"{text!r} stands in {len(found)} lines:\n" + "\n".join(among)
    return found[0]
