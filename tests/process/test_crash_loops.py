"""A runner that exits again and again: the pauses double, then it is given up, and the others serve on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from falctl.board.rows import LifeRow
from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

CRASHES: Final = f"{Path(__file__).parent / 'apps' / 'small.py'}::CrashesSoon"
LIMITS: Final = "[runners]\nbackoff_min = 0.5\nbackoff_max = 1.5\nrestarts_max = 3\n"


@contextmanager
def doomed(runners: str, *, count: int, tmp_path: Path, once: bool = False) -> Iterator[Falctl]:
    """Start a fleet; once all of it is ready, its *runners* begin to exit a moment after each start, or do so *once*."""
    doom = tmp_path / "doom"
    env = {"FALCTL_TEST_DOOMED": runners, "FALCTL_TEST_DOOM": str(doom), "FALCTL_TEST_ONCE": str(int(once))}
    with Falctl(CRASHES, config=LIMITS, args=("--runners", str(count)), env=env) as f:
        doom.touch()
        yield f


def follow_to_its_end(f: Falctl, runner: int) -> list[LifeRow]:
    """Return every row of a runner's life on the board until it is given up."""
    rows: list[LifeRow] = []

    def look() -> bool:
        row = f.life(runner)
        if not rows or row != rows[-1]:
            rows.append(row)
        return row.state == "failed"

    until(look, within_s=60.0, what="it is given up", every_s=0.005)
    return rows


def test_the_pauses_double_and_then_it_is_given_up_while_the_other_serves(tmp_path: Path) -> None:
    with doomed("0", count=2, tmp_path=tmp_path) as f:
        rows = follow_to_its_end(f, 0)
        pauses = {row.epoch: row.restart_at - row.since_at for row in rows if row.state == "backoff"}
        assert pauses, "who looks now and then may miss one"
        for epoch, pause_s in pauses.items():
            doubled = {1: 0.5, 2: 1.0, 3: 1.5}[epoch]
            assert pause_s == pytest.approx(doubled, abs=0.001), "and no longer than backoff_max"
        assert rows[-1].reason.startswith("4 exits in 600 s; the last: exited with code 9"), (
            "perhaps in setup()"
        )
        assert rows[-1].epoch == 4
        assert {f.post("/").json for _ in range(10)} == {1}
        assert "4 exits in 600 s" in f.run("status", "--once").stdout
        assert f.status()["runners"][0]["state"] == "failed"
        assert f.life(1).epoch == 1


def test_when_all_are_given_up_a_request_is_refused_at_once_and_told_why(tmp_path: Path) -> None:
    with doomed("0,1", count=2, tmp_path=tmp_path) as f:
        for runner in range(2):
            until(lambda: f.life(runner).state == "failed", within_s=60.0, what="it is given up")  # noqa: B023
        refused = until(lambda: (r := f.post("/")).status == 503 and r, within_s=5.0, what="refused")
        assert refused
        assert json.loads(refused.body)["error_type"] == "runner_scheduling_failure"
        assert "falctl status" in refused.json["detail"]
        assert refused.headers["x-falctl-origin"] == "router"
        assert f.get("/health").status == 503
        assert f.running(), "a person looks at `falctl status` why; nothing is lost by staying"


def test_requests_wait_while_the_only_runner_comes_back(tmp_path: Path) -> None:
    with doomed("0", count=1, tmp_path=tmp_path, once=True) as f:
        until(lambda: f.life(0).state == "backoff" or f.life(0).epoch == 2, within_s=60.0, what="it is gone")
        assert f.post("/").status == 200, "it was sent to the next incarnation"
        assert f.life(0).epoch == 2
