"""Reading a trace: CSV or JSON lines, plain or .gz, one request a row."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from falctl.core.types import Hint
from falctl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a trace, and what it truly costs; a policy sees the costs only once they have been paid."""

    t_s: float
    hint: Hint
    exec_s: float
    load_s: float
    size_bytes: int
    client: str


def read_trace(path: Path, *, load_factor: float = 1.0) -> list[Job]:
    """
    Return the requests of *path* by time, every load *load_factor* times as long.

    Raises:
        ConfigError: it cannot be read, or a row is not one; names the row and the field.
    """
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw).decode() if path.suffix == ".gz" else raw.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        msg = f"trace {path}: cannot be read ({error})"
        raise ConfigError(msg) from error
    jobs = [_job(table, f"trace {path}, row {n}") for n, table in enumerate(_rows(text), 1)]
    if not jobs:
        msg = f"trace {path}: has no rows; fields are t_s, hint, exec_s, load_s, size_bytes, client"
        raise ConfigError(msg)
    return sorted((replace(j, load_s=j.load_s * load_factor) for j in jobs), key=lambda j: j.t_s)


def _rows(text: str) -> Iterator[dict[str, Any]]:
    if text.lstrip().startswith("{"):
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
    else:
        yield from csv.DictReader(io.StringIO(text))


def _job(table: dict[str, Any], where: str) -> Job:
    try:
        return Job(
            t_s=float(table["t_s"]),
            hint=Hint(str(table["hint"])),
            exec_s=float(table["exec_s"]),
            load_s=float(table["load_s"]),
            size_bytes=int(float(table.get("size_bytes") or 0)),
            client=str(table.get("client") or ""),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{where}: {type(error).__name__} {error}; fields are t_s, hint, exec_s, load_s, size_bytes, client"
        raise ConfigError(msg) from error


def hints_of(jobs: Iterable[Job]) -> set[Hint]:
    """Return the hints that a trace names."""
    return {job.hint for job in jobs}
