"""`falctl explain` and `falctl why`: what the router decided, or would, with what it compared, in 80 columns."""

from __future__ import annotations

import json
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from falctl.cli.server import read
from falctl.dashboard.cells import QUIET, Pen, latency, span
from falctl.errors import EXIT_OK

Facts: TypeAlias = dict[str, Any]
"""A part of the router's JSON."""

_NAME_CELLS: Final = 200
_PEN: Final = Pen()


def explain_command(request: str, *, json_output: bool) -> int:
    """Print the story of a request. Raises FalctlError: none runs, or it does not remember the request."""
    told = read(f"/falctl/explain/{urllib.parse.quote(request, safe='', errors='surrogatepass')}")
    printed = Text(f"what its app printed: falctl logs --request {_safe(told['request'])}", style=QUIET)
    return print_told(told, [*story(told), Text(), printed], json_output=json_output)


def why_command(model: str, *, app: str | None, json_output: bool) -> int:
    """
    Print why requests for a model wait, or where one would go.

    Raises:
        FalctlError: none runs, or it takes an app's alias to say.
    """
    asked = {"model": model} | ({} if app is None else {"app": app})
    told = read("/falctl/why?" + urllib.parse.urlencode(asked, errors="surrogatepass"))
    return print_told(told, reasons(told), json_output=json_output)


def print_told(told: Facts, parts: Sequence[RenderableType], *, json_output: bool) -> int:
    """Print *parts*, or what was *told* as JSON; return the exit code."""
    if json_output:
        json.dump(told, sys.stdout)
        sys.stdout.write("\n")
        return EXIT_OK
    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        for part in parts:
            console.print(part)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in printed.get().split("\n")[:-1]))
    return EXIT_OK


# --- a request -----------------------------------------------------------------------------------


def story(told: Facts) -> list[RenderableType]:
    """Return the story of a request as what to print: who it is, then what happened, in order of time."""
    wants = _safe(told["hint"]) if told["hint"] is not None else "any runner"
    parts: list[RenderableType] = [
        Text.assemble(
            ("request ", QUIET),
            _safe(told["request"]),
            ("  wants ", QUIET),
            (wants, "bold"),
            (f"  of {_safe(told['app'])}" if "app" in told else "", QUIET),
        ),
        Text.assemble(
            ("client ", QUIET),
            _safe(told["client"]) or "unknown",
            (f"  {told['priority']} priority  came ", QUIET),
            f"{span(told['arrived_ago_s'])} ago",
            ("  now ", QUIET),
            (told["state"], "bold"),
        ),
        Text(),
    ]
    for _, lines in sorted(_happened(told), key=lambda entry: entry[0]):
        parts += lines
    if told["why"]:
        parts += [Text(), Text(_safe(told["why"]))]
    return parts


def _happened(told: Facts) -> list[tuple[float, list[RenderableType]]]:
    """Return what happened, and when; of two things at one instant the cause comes first."""
    found = [(0.0, [_at(0.0, "arrived" + _turn(told))])]
    for load in told["loads"]:
        found.append((load["t_s"], _load(load)))
        if load["ended_t_s"] is not None:
            found.append((load["ended_t_s"], [_at(load["ended_t_s"], _load_end(load))]))
    found += [(step["t_s"], _step(step)) for step in told["steps"]]
    return found


def _turn(told: Facts) -> str:
    late = f", due {told['due_s']:.1f} s later, behind its client's others" if told["due_s"] > 0.05 else ""
    if told["priority"] == "low" and late:
        late = f", due {told['due_s']:.0f} s later, as it has low priority"
    by = "" if told["start_by_s"] is None else f", to be started within {told['start_by_s']:.1f} s"
    return late + by


def _step(step: Facts) -> list[RenderableType]:
    return [_at(step["t_s"], _STEPS[step["kind"]](step)), *_table(step["candidates"], chosen=step["runner"])]


def _dispatched(step: Facts) -> str:
    where = "warm" if step["warm"] else "not warm"
    share = _SHARES.get(step["cache"] or "", "")
    return f"sent to runner {step['runner']} ({where}) after {_seconds(step['waited_s'])}{share}: {_safe(step['reason'])}"


def _ended(step: Facts) -> str:
    if step["exec_s"] is None:
        return "ended; it failed or was cancelled, so its costs say nothing"
    load = "" if step["load_s"] is None else f", loaded {_seconds(step['load_s'])}{_from(step['tier'])}"
    return f"ended: executed {_seconds(step['exec_s'])}{load}"


_SHARES: Final = {
    "disk": ", its load was made for it",
    "ram": ", its load from RAM was made for it",
    "join": ", it joined a load under way",
}


_NEAR: Final = {"ram": " from RAM", "base": " beside its base"}


def _from(tier: str | None) -> str:
    return {"ram": " from RAM", "disk": " from disk"}.get(tier or "", "")


_STEPS: Final[Mapping[str, Callable[[Facts], str]]] = {
    "dispatched": _dispatched,
    "ended": _ended,
    "bounced": lambda step: f"runner {step['runner']} did not let it in; it waits again",
    "cancelled": lambda _: "its client left while it waited",
    "lost": lambda step: f"runner {step['runner']} was lost",
    "refused": lambda step: f"refused: {step['reason'].replace('_', ' ')}",
}


def _load(load: Facts) -> list[RenderableType]:
    evicts = f", evicting {', '.join(map(_safe, load['evict']))}" if load["evict"] else ""
    others = "1 waits" if load["waiting"] == 1 else f"{load['waiting']} wait"
    text = f"load on runner {load['runner']}{evicts}, {others} for it: {_safe(load['reason'])}"
    return [_at(load["t_s"], text), *_table(load["candidates"], chosen=load["runner"])]


def _load_end(load: Facts) -> str:
    if load["ok"] is None:
        return f"the load on runner {load['runner']} is over; its end was not heard of"
    how = "ended" if load["ok"] else "failed"
    return f"the load{_from(load['tier'])} on runner {load['runner']} {how} after {_seconds(load['load_s'])}"


def _at(t_s: float, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", min_width=9, no_wrap=True, style=QUIET)
    grid.add_column(overflow="fold")
    grid.add_row(f"{t_s:+.2f} s", text)
    return grid


# --- a model -------------------------------------------------------------------------------------


def reasons(told: Facts) -> list[RenderableType]:
    """Return what is told of a model as what to print."""
    head = Text.assemble(
        (_safe(told["hint"]), "bold"),
        ("  executes in about ", QUIET),
        _seconds(told["exec_s"]),
        (", loads in about ", QUIET),
        _seconds(told["load_s"]),
        (_NEAR.get(told["source"], ""), QUIET),
    )
    parts: list[RenderableType] = [head, Text(_safe(told["conclusion"]))]
    if told["runners"]:
        parts += [Text(), *_table([row["candidate"] for row in told["runners"]], chosen=None)]
        parts += [Text(), *(line for row in told["runners"] for line in _busy(row))]
    return parts


def _busy(row: Facts) -> list[RenderableType]:
    tasks = [f"executes {_task(task)}" for task in row["executing"]]
    tasks += [f"loads {_task(task)}" for task in row["loading"]]
    if not tasks:
        return []
    free = f"; free in about {_seconds(row['free_in_s'])}" if row["free_in_s"] > 0 else ""
    return [Text(f"  runner {row['candidate']['runner']} {', '.join(tasks)}{free}", style=QUIET)]


def _task(task: Facts) -> str:
    name = "a request without a hint" if task["hint"] is None else _safe(task["hint"])
    return f"{name} for {_seconds(task['since_s'])}"


# --- candidates ----------------------------------------------------------------------------------


def _table(candidates: Sequence[Facts], *, chosen: int | None) -> list[RenderableType]:
    """Return a table with the figures that any of them has; nothing without candidates."""
    if not candidates:
        return []
    shown = [(head, field) for head, field in _FIGURES if any(c[field] for c in candidates)]
    if any(c["source"] not in (None, "disk") for c in candidates):
        shown.insert(0, ("FROM", "source"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    table.add_column("RUNNER", no_wrap=True)
    table.add_column("STANDS", no_wrap=True)
    for head, _ in shown:
        table.add_column(head, justify="right", no_wrap=True)
    evicts = any(c["evict"] for c in candidates)
    if evicts:
        table.add_column("EVICTS", overflow="fold")
    for c in candidates:
        mark = f"{_PEN.glyphs.runs} " if c["runner"] == chosen else "  "
        cells = [f"{mark}{c['runner']}", c["standing"], *(_figure(c[field], field) for _, field in shown)]
        table.add_row(
            *cells,
            *([", ".join(map(_safe, c["evict"]))] if evicts else []),
            style="bold" if c["runner"] == chosen else "",
        )
    return [Padding(table, (0, 0, 0, 11))]


_FIGURES: Final = (
    ("BACKLOG", "backlog_s"),
    ("COST", "cost"),
    ("LOSS", "loss"),
    ("SAVES", "saves"),
    ("PRICE", "price"),
)


def _figure(value: float | str | None, field: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return _seconds(value) if field.endswith("_s") else f"{value:,.1f}"


def _seconds(seconds: float) -> str:
    return latency(seconds) if seconds > 0 else "0 s"


def _safe(text: str) -> str:
    return _PEN.safe(text, cells=_NAME_CELLS)
