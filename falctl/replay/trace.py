"""Reading a trace: CSV or JSON lines, plain or .gz, one request a row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from falctl.core.types import Hint
from falctl.errors import ConfigError

FIELDS: Final = ("t_s", "hint", "exec_s", "load_s", "size_bytes", "client", "ram_load_s")
"""Columns of a CSV, in the order in which they are written; JSON lines have the same names."""

_ALIASES: Final[Mapping[str, str]] = {"t": "t_s", "model": "hint"}
"""Short names that traces of bare arrivals use."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a trace, and what it truly costs; a policy sees the costs only once they have been paid."""

    t_s: float
    hint: Hint
    """Empty: it wants no hint, so any runner serves it without a load."""
    exec_s: float
    load_s: float
    size_bytes: int
    """0: unknown."""
    client: str
    ram_load_s: float | None = None
    """What a load takes if host memory has its bytes; None: nobody has seen one."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a row that lacks a cost takes; None: then it is an error."""

    exec_s: float | None = None
    load_s: float | None = None


def read_trace(path: Path, *, load_factor: float = 1.0, missing: Missing = Missing()) -> list[Job]:
    """
    Return the requests of *path* by time, every load, from wherever, *load_factor* times as long.

    Raises:
        ConfigError: it cannot be read, or a row is not one; names the row, counted from 1 without the
            header, and the field.
    """
    jobs = []
    for n, row in enumerate(_rows(_text(path), path), 1):
        try:
            jobs.append(_job(row, load_factor=load_factor, missing=missing))
        except ValueError as error:
            msg = f"trace {path}, row {n}: {error}"
            raise ConfigError(msg) from None
    if not jobs:
        msg = f"trace {path}: has no rows; fields are {', '.join(FIELDS)}"
        raise ConfigError(msg)
    return sorted(jobs, key=lambda job: job.t_s)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        # A hint from a JSON body may hold half a surrogate pair: it is an opaque string, and comes back as it was.
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="surrogatepass")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        msg = f"trace {path}: cannot be read ({why})"
        raise ConfigError(msg) from error
    return text.removeprefix("\ufeff")


def _rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over the rows, not checked yet. Raises ConfigError for one that is no row at all."""
    json_lines = text.lstrip().startswith("{")
    rows = _json_rows(text) if json_lines else _csv_rows(text)
    n = 0
    try:
        for n, row in enumerate(rows, 1):  # noqa: B007 - the error below names the row after this one
            yield {_ALIASES[key]: row[key] for key in _ALIASES.keys() & row.keys()} | row
    except (csv.Error, ValueError, RecursionError) as error:
        msg = f"trace {path}, row {n + 1}: not {'a JSON object' if json_lines else 'a row of CSV'} ({error})"
        raise ConfigError(msg) from None


def _json_rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                msg = f"it is a {type(row).__name__}"
                raise ValueError(msg)
            yield row


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    return iter(csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True))


def _job(row: Mapping[str, Any], *, load_factor: float, missing: Missing) -> Job:
    return Job(
        t_s=_number(row, "t_s", least=-math.inf),
        hint=Hint(_word(row, "hint", None)),
        exec_s=_number(row, "exec_s", missing.exec_s),
        load_s=_number(row, "load_s", missing.load_s) * load_factor,
        size_bytes=int(_number(row, "size_bytes", 0.0)),
        client=_word(row, "client", ""),
        ram_load_s=_ram_load_s(row, load_factor),
    )


def _ram_load_s(row: Mapping[str, Any], load_factor: float) -> float | None:
    if row.get("ram_load_s") in (None, ""):
        return None
    return _number(row, "ram_load_s") * load_factor


def _number(row: Mapping[str, Any], field: str, default: float | None = None, *, least: float = 0.0) -> float:
    value = _given(row, field, default)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < least:
        msg = f"{field}: {_shown(value)} is not a number{'' if least else ' from 0 up'}"
        raise ValueError(msg)
    return number


def _word(row: Mapping[str, Any], field: str, default: str | None) -> str:
    value = _given(row, field, default)
    if not isinstance(value, str):
        msg = f"{field}: {_shown(value)} is not a text"
        raise ValueError(msg)  # noqa: TRY004 - see _json_rows
    return value


def _given(row: Mapping[str, Any], field: str, default: object) -> Any:
    value = row.get(field)
    if value is None or (value == "" and field != "hint"):
        value = default
    if value is None:
        advice = f"give --{field.replace('_', '-')}, or " if field in ("exec_s", "load_s") else ""
        msg = f"{field}: is missing; {advice}write the fields {', '.join(FIELDS)}"
        raise ValueError(msg)
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
