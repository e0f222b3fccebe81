"""
Makes a trace of live traffic from what the router tells of ended requests, poll after poll.

Nobody is named in it: clients are hashed with a key that is drawn for each recording and kept nowhere, so that one
client stays one within the file and cannot be found in another. Hints are hashed likewise if that is asked for.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from falctl.replay.trace import FIELDS

_JSON_LINES: Final = frozenset({".jsonl", ".ndjson", ".json"})
_HASH_BYTES: Final = 6


@dataclass(frozen=True, slots=True)
class Form:
    """What a file of this name holds: CSV or JSON lines, compressed or not."""

    json_lines: bool
    compressed: bool

    def text(self, rows: list[dict[str, Any]], *, first: bool) -> bytes:
        """Return *rows* as whole lines, after the header if they are the *first* of a CSV."""
        raw = (_json(rows) if self.json_lines else _csv(rows, header=first)).encode(errors="surrogatepass")
        # A member of its own each time: a file of several is one valid file, also if we are killed after this one.
        return gzip.compress(raw, mtime=0) if self.compressed and raw else raw


def form_of(path: Path) -> Form:
    """Return what *path* is to hold, by its name: ``.jsonl`` is JSON lines, anything else CSV; ``.gz`` compresses."""
    compressed = path.suffix == ".gz"
    kind = Path(path.stem).suffix if compressed else path.suffix
    return Form(kind in _JSON_LINES, compressed)


@dataclass(slots=True)
class Recorder:
    """Takes the answers of ``GET /falctl/ended`` in turn. *key*: random, at least 16 bytes."""

    key: bytes
    hash_hints: bool = False
    recorded: int = 0
    failed: int = 0
    """Left out, as they have no cost: they failed or were cancelled."""
    lost: int = 0
    """Ended between two polls, and were forgotten before the second."""
    restarts: int = 0
    """Of the router; what ended around one is lost, nobody knows how many."""
    without_load: int = 0
    """Rows without ``load_s``: no load of their model had been seen."""
    unfinished: int = 0
    after: int | None = None
    """Number of the last request taken in; None: before the first answer."""
    _epoch: int = 0
    _began_at: float = 0.0

    def take(self, told: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of the trace that an answer gives, which was asked for with ``after``."""
        self.unfinished = told["unfinished"]
        if self.after is None:
            self._epoch, self._began_at, self.after = told["epoch"], told["at"], told["count"]
            return []
        if told["epoch"] != self._epoch:
            # A new router numbers anew, and was asked for what came after a number of the old one.
            self._epoch, self.after = told["epoch"], 0
            self.restarts += 1
            return []
        requests = told["requests"]
        if requests:
            self.lost += requests[0]["number"] - self.after - 1
            self.after = requests[-1]["number"]
        rows = [self._row(request) for request in requests if self._counts(request)]
        self.recorded += len(rows)
        self.without_load += sum(row["load_s"] is None for row in rows)
        return rows

    def _counts(self, request: Mapping[str, Any]) -> bool:
        if request["arrived_at"] < self._began_at:
            return False  # its beginning is not in the trace, so neither is its end
        self.failed += request["exec_s"] is None
        return request["exec_s"] is not None

    def _row(self, request: Mapping[str, Any]) -> dict[str, Any]:
        hint = request["hint"] or ""
        load_s, ram_load_s = request["load_s"], request["ram_load_s"]
        return {
            "t_s": round(request["arrived_at"] - self._began_at, 6),
            "hint": self._hashed("m", hint) if self.hash_hints else hint,
            "exec_s": round(request["exec_s"], 6),
            "load_s": None if load_s is None else round(load_s, 6),
            "size_bytes": request["size_bytes"] or 0,
            "client": self._hashed("c", request["client"]),
            "ram_load_s": None if ram_load_s is None else round(ram_load_s, 6),
        }

    def _hashed(self, mark: str, name: str) -> str:
        if not name:
            return ""
        told = (mark + name).encode(errors="surrogatepass")
        return mark + hashlib.blake2b(told, key=self.key, digest_size=_HASH_BYTES).hexdigest()


def _csv(rows: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, FIELDS)
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _json(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
