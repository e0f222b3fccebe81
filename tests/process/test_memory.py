"""What has been learnt of costs outlives the router and falctl itself."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from falctl.core.types import Hint
from tests.process.harness import Falctl
from tests.wait import until

pytestmark = pytest.mark.process
APP = "runners.simulated:SimulatedModels"


def hints_of(f: Falctl) -> dict[str, Any]:
    table = json.loads(f.home.learnt.read_bytes())
    return {row[0]: row[1] for row in table["apps"][""]["costs"]["exec"]}


def test_costs_are_learnt_once_for_all_falctls_in_a_state_directory() -> None:
    model = Hint("a-model")
    with Falctl(APP, args=("--runners", "1")) as f:
        for _ in range(3):
            assert f.post("/", {"model": model, "exec_s": 0.01, "load_s": 0.01}).status == 200
        assert f.stop() == 0
        first = hints_of(f)
        assert first[model] >= 0.01
        f.start_again()
        assert "observations=3" in f.wait_line("memory.recalled")
        os.kill(f.pids()["router"], signal.SIGKILL)
        until(
            lambda: sum("memory.recalled" in line for line in f.lines) == 2,
            within_s=30.0,
            what="a new router recalls, too",
        )
        f.stop()
        assert hints_of(f) == first


def test_a_spoilt_file_is_one_line_and_no_obstacle() -> None:
    with Falctl(APP, args=("--runners", "1"), start=False) as f:
        f.home.make_root()
        f.home.learnt.write_text('{"version": 2, "apps": ')
        f.start()
        f.wait_ready()
        assert f.post("/", {"model": "m", "exec_s": 0.01, "load_s": 0.01}).status == 200
        f.stop()
        assert sum("memory.ignored" in line for line in f.lines) == 1
        assert "m" in hints_of(f)
