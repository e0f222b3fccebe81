"""`python -m benchmarks.routing` plays the same rows for real and on the virtual clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.routing import COMPARED, METRICS
from tests.replay.traces import drawn
from tests.replay.written import write_trace

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
WITHIN_S = 550


def benchmark(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "FALCTL_TRACES"}
    command = [sys.executable, "-m", "benchmarks.routing", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment | environ,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


@pytest.mark.process
@pytest.mark.timeout(WITHIN_S + 20)
def test_real_and_replayed_figures_of_every_trace_stand_side_by_side(tmp_path: Path) -> None:
    write_trace(tmp_path / "gentd26_public_n4_u35.csv.gz", drawn(1, 40, models=5))
    bare = "".join(json.dumps({"t": i / 10, "model": f"m{i % 3}"}) + "\n" for i in range(20))
    (tmp_path / "zipf30_20rps.jsonl").write_text(bare)
    found = tmp_path / "found.json"
    done = benchmark("--quick", "--policies", "auto", "--traces", str(tmp_path), "--json", str(found))
    assert done.returncode == 0, done.stderr
    tables = json.loads(found.read_text())["tables"]
    assert len(tables) == 6
    for real, replayed, quotient in (tables[:3], tables[3:]):
        figures = real["rows"]["auto"], replayed["rows"]["auto"]
        assert all(row.keys() >= set(METRICS) for row in figures)
        # How many of so few requests load hangs on the machine; the real comparison is the benchmark's own.
        assert all(0 < row["loads/1k"] <= 1000 for row in figures)
        assert figures[0]["client late max ms#"] >= 0
        assert quotient["rows"]["auto"].keys() == {f"{metric}#" for metric in COMPARED}
    assert str(tmp_path) not in found.read_text() + done.stdout


def test_without_traces_it_says_what_to_give(tmp_path: Path) -> None:
    done = benchmark()
    assert done.returncode == 2
    assert "give --traces DIR or set FALCTL_TRACES" in done.stderr
    done = benchmark("--traces", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.endswith("cannot be read (No such file or directory)\n")
