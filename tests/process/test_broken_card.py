"""A CUDA context that is of no use any more: the runner ends, another takes its place, and a queued job is tried again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from falctl.errors import EXIT_CARD_BROKEN
from falctl.wire import LOAD_PATH
from tests.host.harness import Host
from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

APP: Final = f"{Path(__file__).parent / 'apps' / 'poisoned.py'}::Poisoned"
CONFIG: Final = "[runners]\nbackoff_min = 0.5\nbackoff_max = 0.5\n"


def test_the_runner_is_replaced_and_says_why_and_the_attempt_counts(tmp_path: Path) -> None:
    env = {"FALCTL_TEST_POISON": str(tmp_path / "broken")}
    with Falctl(APP, config=CONFIG, args=("--runners", "1"), env=env) as f:
        submitted = f.post("/queue/me/app/once", {})
        assert submitted.status == 200, submitted.body
        request = submitted.json["request_id"]
        f.wait_line(rf"cpu0\.backoff epoch=1 exited with code {EXIT_CARD_BROKEN} \(its GPU failed")
        f.wait_line("an illegal memory access was encountered")

        def completed() -> bool:
            reply = f.get(f"/queue/me/app/requests/{request}/status")
            return bool(reply.json["status"] == "COMPLETED")

        until(completed, within_s=60.0, what="the job is done")
        assert f.get(f"/queue/me/app/requests/{request}").json == "drawn"
        assert f.life(0).epoch == 2
        assert f.stop() == 0
        with closing(sqlite3.connect(f.home.jobs / "jobs.db")) as database:
            (tries,) = database.execute("SELECT attempts FROM jobs WHERE id = ?", (request,)).fetchone()
        assert tries == 2


def test_a_load_job_that_breaks_the_card_ends_the_runner_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FALCTL_TEST_POISON", str(tmp_path / "broken"))
    with Host(APP) as host:
        assert host.post(LOAD_PATH, {"hint": "a", "evict": []}).status == 202
        assert host.process.wait(timeout=60.0) == EXIT_CARD_BROKEN
        assert "card.broken load=a" in host.output()
