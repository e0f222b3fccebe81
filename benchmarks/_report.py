"""
What all benchmarks share: facts of the machine, tables with ratios to a named baseline, and ``--json FILE``.

A benchmark parses with `arguments`, fills `Table`s and hands them to `publish`, which prints Markdown (what
stands in benchmarks/results/) and writes the same figures, unrounded, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from falctl.clock import wall_clock
from falctl.version import __version__


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of several contenders (rows) in several metrics (columns); each ratio is to the row *baseline*."""

    title: str
    metrics: tuple[str, ...]
    """Names with their units: ``"p50 ms"``. A name that ends with ``#`` is a count, and gets no ratio."""
    rows: Mapping[str, Mapping[str, float]]
    """Contender to metric to figure; a missing figure is shown as a dash."""
    baseline: str
    notes: Sequence[str] = field(default=())


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser that knows ``--json FILE``; a benchmark may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write every figure and the machine here"
    )
    return parser


def machine() -> dict[str, str]:
    """Return what figures depend on: machine, kernel, Python, falctl and the day."""
    return {
        "machine": f"{len(os.sched_getaffinity(0))}-core {_kind()}, {platform.machine().replace('_', '-')}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "falctl": __version__,
        "date": wall_clock().date().isoformat(),
    }


def packages(*names: str) -> dict[str, str]:
    """Return the versions of installed packages that figures depend on; ``"absent"`` for one that is not there."""
    return {name: _version(name) for name in names}


def publish(
    name: str,
    tables: Sequence[Table],
    *,
    json_path: Path | None,
    facts: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> None:
    """Print *tables* as Markdown, below the facts; write all of it, and *more*, to *json_path* if given."""
    known = machine() | dict(facts or {})
    print(f"# {name}\n")
    print(" · ".join(f"{key}: {value}" for key, value in known.items()))
    for table in tables:
        print(f"\n## {table.title}\n")
        print(render(table))
        for note in table.notes:
            print(f"\n{note}")
    if json_path is not None:
        content = {
            "name": name,
            "facts": known,
            "tables": [asdict(table) for table in tables],
            **(more or {}),
        }
        json_path.write_text(json.dumps(content, indent=1) + "\n")


def render(table: Table) -> str:
    """Return *table* as aligned Markdown, every metric followed by its ratio to the baseline."""
    head = [""]
    for metric in table.metrics:
        head += [metric.removesuffix("#").rstrip()] + ([] if metric.endswith("#") else ["ratio"])
    lines = [head, *(_cells(table, name) for name in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    text = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [text[0], rule, *text[1:]])


def _cells(table: Table, name: str) -> list[str]:
    cells = [f"{name} (baseline)" if name == table.baseline else name]
    for metric in table.metrics:
        value, base = table.rows[name].get(metric), table.rows[table.baseline].get(metric)
        cells.append("-" if value is None else _number(value))
        if not metric.endswith("#"):
            cells.append(f"{_number(value / base)}x" if value is not None and base else "-")
    return cells


def _number(value: float) -> str:
    if value == int(value) or abs(value) >= 999.5:  # what .3g would write as 1e+03
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _kind() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    return "VM" if cpuinfo.exists() and " hypervisor" in cpuinfo.read_text() else "machine"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
