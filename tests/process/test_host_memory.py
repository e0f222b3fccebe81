"""A whole fleet has one copy of the bytes of a component, whoever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.process.harness import START_S
from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

APP = "tests.process.apps.memory_app:Holds"
MB = 1 << 20
EXACT = '[routing]\npolicy = "fal"\n'
"""A request goes to the runner whose hint it bears, whatever that costs, once the router knows of it."""
CONFIG = EXACT + '[cache]\nhost_memory = "16MiB"\n[runners]\nbackoff_min = "100ms"\n'


def ask(f: Falctl, runner: int, key: str, *, nbytes: int = 8 * MB, value: int = 0, hold: bool = True) -> Any:
    """Return what *runner* says; the router may not have heard of it yet, so that another may get what is for it."""
    until(
        lambda: post(f, runner, "nothing", nbytes=0)["runner"] == runner, within_s=START_S, what="it is found"
    )
    said = post(f, runner, key, nbytes=nbytes, value=value, hold=hold)
    assert said["runner"] == runner
    return said


def post(f: Falctl, runner: int, key: str, **wanted: object) -> Any:
    reply = f.post("/", {"key": key, **wanted}, headers={"X-Fal-Runner-Hint": f"runner-{runner}"})
    assert reply.status == 200, reply.body
    return reply.json


def test_two_runners_share_one_copy_that_outlives_both_and_ends_with_the_supervisor() -> None:
    with Falctl(APP, config=CONFIG, args=("--runners", "2")) as f:
        assert f.status()["memory"] == memory(held=0, used=0, blocks=0)
        assert ask(f, 0, "unet", value=3) == {"runner": 0, "filled": False, "sum": 3 * 8 * MB}
        assert ask(f, 1, "unet") == {"runner": 1, "filled": True, "sum": 3 * 8 * MB}
        assert f.status()["memory"] == memory(held=8 * MB, used=8 * MB, blocks=1)

        for runner in (0, 1):
            kill(f, runner)
        until(
            lambda: f.status()["memory"]["used_bytes"] == 0,
            within_s=START_S,
            what="the dead refer to nothing",
        )
        assert f.status()["memory"] == memory(held=8 * MB, used=0, blocks=1)
        assert ask(f, 0, "unet")["filled"], "what was sealed is found by who comes after"

        assert not ask(f, 1, "vae", hold=False)["filled"]
        until(lambda: f.status()["memory"]["used_bytes"] == 8 * MB, within_s=START_S, what="it was let go")
        assert not ask(f, 1, "text encoder")["filled"], "in the room of the other"
        assert f.status()["memory"] == memory(held=16 * MB, used=16 * MB, blocks=2)
        refused = f.post("/", {"key": "more", "nbytes": MB})
        assert refused.status == 500

        f.kill()
        f.assert_nothing_left()
        f.start_again()
        assert f.status()["memory"] == memory(held=0, used=0, blocks=0)
        assert not ask(f, 0, "unet", value=4)["filled"]


def test_who_writes_into_shared_weights_is_ended_with_its_stack_and_nobody_else_draws_otherwise() -> None:
    with Falctl(APP, config=CONFIG, args=("--runners", "2")) as f:
        ask(f, 0, "unet", value=3)
        ask(f, 1, "unet")
        epoch = f.life(1).epoch
        reply = f.post("/scribble", headers={"X-Fal-Runner-Hint": "runner-1"})
        assert reply.status == 503
        f.wait_line(r"\[cpu1\] Fatal Python error: Segmentation fault")
        f.wait_line(r"\[cpu1\] .*memory_app.py.* in scribble")
        until(lambda: f.life(1).epoch > epoch, within_s=START_S, what="it is started anew")
        assert ask(f, 1, "unet") == {"runner": 1, "filled": True, "sum": 3 * 8 * MB}


def test_what_no_runner_uses_leaves_after_keep_alive() -> None:
    with Falctl(APP, config=EXACT + "[cache]\nkeep_alive = 0\n", args=("--runners", "1")) as f:
        assert not ask(f, 0, "unet", hold=False)["filled"]
        until(lambda: f.status()["memory"]["held_bytes"] == 0, within_s=START_S, what="it has left")


def test_runners_that_share_nothing_have_memory_of_their_own_and_go_first_when_it_runs_out() -> None:
    with Falctl(APP, config=EXACT + "[cache]\nhost_memory = 0\n", args=("--runners", "2")) as f:
        assert not ask(f, 0, "unet")["filled"]
        assert not ask(f, 1, "unet")["filled"]
        assert f.status()["memory"] == {**memory(held=0, used=0, blocks=0), "budget_bytes": 0}
        pids = f.pids()
        ours, theirs = (badness(pids[name]) for name in ("supervisor", "runner0"))
        assert theirs == min(1000, ours + 500)
        assert badness(pids["router"]) == ours


def memory(*, held: int, used: int, blocks: int) -> dict[str, int]:
    return {"budget_bytes": 16 * MB, "held_bytes": held, "used_bytes": used, "blocks": blocks, "waiting": 0}


def kill(f: Falctl, runner: int) -> None:
    before = f.life(runner)
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: f.life(runner).epoch > before.epoch, within_s=START_S, what="it is started anew")
    f.wait_state(runner, "ready")


def badness(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
