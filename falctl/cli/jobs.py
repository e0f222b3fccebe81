"""`falctl jobs` and `falctl cancel`: what is asked for now and lately, and the end of one of it."""

from __future__ import annotations

import sys
import urllib.parse
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from falctl.cli.explain import print_told
from falctl.cli.server import post, read
from falctl.dashboard.cells import QUIET, Pen, span
from falctl.errors import EXIT_OK

_PEN: Final = Pen()
_ID_CELLS: Final = 13
"""As much of an id as tells it from others; every command takes it for the whole."""

_APP_CELLS: Final = 14
"""As much of an alias as leaves room for the model on a line of 80."""

_MODEL_CELLS: Final = 8
"""At least; a narrower line is cut by the terminal."""


def jobs_command(*, most: int, json_output: bool) -> int:
    """Print what runs, the first *most* that wait, and the last *most* jobs that have ended. Raises FalctlError."""
    told = read(f"/falctl/jobs?most={most}")
    nothing = Text("nothing runs or waits, and no queued job has ended lately")
    parts: list[RenderableType] = [
        job_table(told["jobs"], width=Console().width) if told["jobs"] else nothing
    ]
    shown = sum(job["state"] == "waiting" for job in told["jobs"])
    if told["waiting"] > shown:
        parts.append(Text(f"{told['waiting'] - shown:,} more wait", style=QUIET))
    return print_told(told, parts, json_output=json_output)


def cancel_command(request: str) -> int:
    """Cancel a request, queued or direct, waiting or running. Raises FalctlError: it is over, or not known."""
    told = post(f"/falctl/jobs/{urllib.parse.quote(request, safe='')}/cancel")
    sys.stdout.write(f"request {_PEN.safe(told['request'], cells=80)} is being cancelled\n")
    return EXIT_OK


def job_table(jobs: list[dict[str, Any]], *, width: int) -> Table:
    """Return the table; the model, last, is cut to what the other columns leave of *width* cells."""
    heads = ("REQUEST", "STATE", "WHEN", "WHERE", "APP")
    rows = [(job["request"][:_ID_CELLS], job["state"], _when(job), _where(job), _app(job)) for job in jobs]
    safe = [tuple(_PEN.safe(cell, cells=80) for cell in row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    left = width
    for n, head in enumerate(heads):
        cells = max(cell_len(row[n]) for row in [heads, *safe])
        table.add_column(head, no_wrap=True, min_width=cells)
        left -= cells + 2
    table.add_column("MODEL", no_wrap=True)
    for row, job in zip(safe, jobs, strict=True):
        style = {"running": "bold", "waiting": ""}.get(job["state"], QUIET)
        table.add_row(*row, _PEN.safe(job["hint"] or "", cells=max(left, _MODEL_CELLS)), style=style)
    return table


def _when(job: dict[str, Any]) -> str:
    return span(job["age_s"]) if job["ended_ago_s"] is None else f"{span(job['ended_ago_s'])} ago"


def _where(job: dict[str, Any]) -> str:
    """Return where it is now; of one that has ended, what was answered."""
    if job["runner"] is not None:
        return f"runner {job['runner']}"
    if job["status"] is not None:
        return f"status {job['status']}"
    if job["position"] is None:
        return "in the queue" if job["kind"] == "direct" else "pauses"
    return f"{job['position']:,} before it"


def _app(job: dict[str, Any]) -> str:
    """Return the alias: any owner will do, so that it tells nothing."""
    mark = "" if job["kind"] == "queued" else " (direct)"
    return (_PEN.cut(job["app"].rpartition("/")[2], cells=_APP_CELLS - len(mark)) + mark).strip()
