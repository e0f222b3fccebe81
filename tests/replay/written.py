"""A trace as a file, for those who read it."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable
from pathlib import Path

from falctl.replay.trace import FIELDS, Job


def write_trace(path: Path, jobs: Iterable[Job]) -> None:
    """Write *jobs* to *path* as CSV, compressed if its name ends with .gz; `read_trace` gives the same back."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(FIELDS)
    table.writerows([getattr(job, field) for field in FIELDS] for job in jobs)
    raw = text.getvalue().encode(errors="surrogatepass")
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
