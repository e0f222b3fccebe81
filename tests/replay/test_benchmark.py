"""`python -m benchmarks.replay` runs on any folder that has traces of those names, and tells nobody where it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.replay import RAM_SIZES, RUNNERS, UNTOLD
from tests.replay.traces import drawn
from tests.replay.written import write_trace

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "FALCTL_TRACES"}
    command = [sys.executable, "-m", "benchmarks.replay", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment | environ, capture_output=True, text=True, timeout=500, check=False
    )


def test_every_table_has_auto_and_its_baselines_and_no_path(tmp_path: Path) -> None:
    for name in RUNNERS:
        write_trace(tmp_path / f"gentd26_public_{name}.csv.gz", drawn(1, 40))
    bare = "".join(json.dumps({"t": i / 20, "model": f"m{i % 5}"}) + "\n" for i in range(40))
    for rate in (20, 60):
        (tmp_path / f"zipf30_{rate}rps.jsonl").write_text(bare)
    found = tmp_path / "found.json"
    done = benchmark("--json", str(found), FALCTL_TRACES=str(tmp_path))
    assert done.returncode == 0, done.stderr
    tables = {table["title"]: table["rows"] for table in json.loads(found.read_text())["tables"]}
    with_ram = {title: rows for title, rows in tables.items() if ", RAM for " in title}
    assert len(with_ram) == len(RAM_SIZES) + 7
    for rows in with_ram.values():
        assert {"auto", f"auto, {UNTOLD}", "fal", "least-loaded", "ModelMesh"} <= rows.keys()
    assert any(rows["fal"]["from RAM/1k#"] > 0 for rows in with_ram.values())
    compared = [rows for rows in tables.values() if "bound" in rows]
    assert len(compared) == len(RUNNERS) + 5
    for rows in compared:
        assert {"auto", "affinity", "fal", "ModelMesh", "SwarmUI, 3 slots", "Tideline (peeks)"} <= rows.keys()
    assert len(tables) == len(compared) + len(with_ram) + 4
    assert str(tmp_path) not in found.read_text() + done.stdout


def test_without_traces_it_says_what_to_give(tmp_path: Path) -> None:
    done = benchmark()
    assert done.returncode == 2
    assert "give --traces DIR or set FALCTL_TRACES" in done.stderr
    done = benchmark("--traces", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.endswith("cannot be read (No such file or directory)\n")
