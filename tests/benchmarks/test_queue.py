"""`python -m benchmarks.queue` measures every contender on the disk that it is told."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def test_each_contender_stands_against_the_bare_disk(tmp_path: Path) -> None:
    found, disk = (
        tmp_path / "found.json",
        Path(tempfile.mkdtemp(prefix="f", dir="/tmp")),
    )  # sockets need short paths
    command = [sys.executable, "-m", "benchmarks.queue", "--rounds", "1", "--seconds", "0.2"]
    command += ["--samples", "3", "--waiting", "20"]
    done = subprocess.run(
        [*command, "--folder", str(disk), "--json", str(found)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table, starts, crowded = json.loads(found.read_text())["tables"]
    assert table["baseline"] == "bare fdatasync"
    assert list(table["rows"]) == ["bare fdatasync", "1 submitter", "64 submitters"]
    commits = {name: row["commits per fdatasync#"] for name, row in table["rows"].items()}
    assert commits["1 submitter"] == 1
    assert commits["64 submitters"] > 1, "how many share one depends on the machine"
    assert set(starts["rows"]) == {"direct run", "queue", "bare fdatasync"}
    assert set(crowded["rows"]) == {
        f"{what}, {how}" for what in ("submit", "status") for how in ("nobody waits", "20 wait")
    }
    disk.rmdir()
