"""`python -m benchmarks.scheduler` keeps its queue as long as it says, and times every event."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scheduler import Fleet, Size, spent
from falctl.core.policies import Auto, Fal, Policy
from falctl.core.scheduler import Scheduler

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.scheduler", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


def test_every_size_has_each_policy_against_the_baseline(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = benchmark("--sizes", "2x6x8,1x9x5", "--events", "100", "--json", str(found))
    assert done.returncode == 0, done.stderr
    tables = json.loads(found.read_text())["tables"]
    assert [table["title"] for table in tables] == [
        "2 runners x 6 hints x 8 waiting",
        "1 runners x 9 hints x 5 waiting",
    ]
    for table in tables:
        rows = table["rows"]
        assert {"auto", "auto: LoadEnded", "auto, no overlap", "fal", "fal: Released"} <= rows.keys()
        assert rows["auto"]["events#"] >= 100
        assert rows["auto"]["p50 us"] <= rows["auto"]["p99 us"] <= rows["auto"]["max us#"]


@pytest.mark.parametrize("policy", [Auto(), Fal()])
@pytest.mark.parametrize("overlaps", [True, False])
def test_the_queue_is_full_before_every_end_and_all_invariants_hold(policy: Policy, overlaps: bool) -> None:
    fleet = Fleet(Scheduler(policy, queue_max=9), Size(2, 6, 8, overlaps))
    fleet.start()
    for _ in range(100):
        fleet.play(5)
        fleet.scheduler.check()
        assert len(fleet.scheduler.queue) >= 8 - fleet.size.runners


def test_what_came_before_the_steady_state_is_not_counted() -> None:
    found = spent(Auto(), Size(2, 6, 8, overlaps=True), events=40)
    assert "RunnerUp" not in found
    assert 40 <= sum(map(len, found.values())) < 60


@pytest.mark.parametrize("sizes", ["16x64", "0x1x1", "axbxc", ""])
def test_a_size_that_is_none_is_refused(sizes: str) -> None:
    done = benchmark("--sizes", sizes)
    assert done.returncode == 2
    assert "is not runners x hints x waiting, like 16x64x512" in done.stderr


def test_an_unknown_policy_is_refused() -> None:
    done = benchmark("--policies", "autow", "--sizes", "1x1x1")
    assert done.returncode == 2
    assert done.stderr.endswith("benchmarks.scheduler: unknown policy 'autow'; did you mean 'auto'?\n")
