"""SIGKILL of the supervisor: the kernel and the guards end all the rest, and the next `falctl up` starts at once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.process.load import BROKEN, Background, load
from tests.process.on_cpu import Falctl
from tests.process.test_kills import QUICK, SIMULATED, flow, gone, hinted
from tests.wait import until

pytestmark = pytest.mark.process

FAMILIES: Final = Path(__file__).parent / "apps" / "families.py"
GONE_S: Final = 2.0
ONE: Final = ("--runners", "1")
KINDS: Final = ("Subprocess", "Forked", "Anonymous", "Daemon")


def kill_and_see_all_gone(f: Falctl) -> None:
    f.kill()
    until(lambda: not f.family(), within_s=GONE_S, what=f"none is left of {f.family()}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_supervisor_takes_runners_and_their_children_along(kind: str) -> None:
    with Falctl(f"{FAMILIES}::{kind}", args=ONE) as f:
        pids: list[int] = f.post("/pids").json
        assert len(pids) >= 2
        kill_and_see_all_gone(f)
        until(lambda: all(gone(pid) for pid in pids), within_s=GONE_S, what=f"none is left of {pids}")
        f.start_again()
        assert f.post("/pids").status == 200


@pytest.mark.parametrize("kind", ["StuckInSleep", "StuckInC"])
def test_a_killed_supervisor_takes_a_runner_along_that_is_stuck_in_its_setup(
    kind: str, tmp_path: Path
) -> None:
    stuck = tmp_path / "stuck"
    env = {"FALCTL_TEST_STUCK": str(stuck)}
    with Falctl(f"{FAMILIES}::{kind}", args=ONE, env=env, start=False) as f:
        f.start()
        until(stuck.exists, within_s=30.0, what="setup() is stuck")
        assert len(f.family()) >= 4, "supervisor, router, runner and its guard"
        kill_and_see_all_gone(f)


def test_a_supervisor_that_is_killed_under_load_leaves_no_client_waiting() -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "2")) as f:
        with load(f, hinted) as running:
            flow(running, count=50)
            kill_and_see_all_gone(f)
        assert running.answered() == running.sent
        assert set(running.statuses) <= {200, 503, BROKEN}
        f.start_again()
        assert f.post("/", {"model": "a"}).status == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_runner_takes_its_children_along(kind: str) -> None:
    with Falctl(f"{FAMILIES}::{kind}", config=QUICK, args=ONE) as f:
        old: list[int] = f.post("/pids").json
        os.kill(old[0], signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in old), within_s=GONE_S, what="the family of the runner is gone")
        f.wait_state(0, "ready")
        new: list[int] = f.post("/pids").json
        assert not set(new) & set(old)
        assert f.stop() == 0
        assert all(gone(pid) for pid in new)


def test_a_killed_runner_is_missed_at_once_although_its_child_holds_its_output() -> None:
    with Falctl(f"{FAMILIES}::Subprocess", config=QUICK, args=ONE) as f:
        pids: list[int] = f.post("/pids").json
        outputs = {Path(f"/proc/{pid}/fd/1").readlink() for pid in pids}
        assert len(outputs) == 1, "the child prints where the runner prints"
        lost = Background(lambda: f.post("/pids"))
        os.kill(pids[0], signal.SIGKILL)
        f.wait_line(r"cpu0\.exited epoch=1 code=-9", within_s=GONE_S)
        reply = lost.result()
        assert reply is None or reply.status in {200, 503}


def test_a_grandchild_that_has_hidden_itself_ends_with_falctl() -> None:
    with Falctl(f"{FAMILIES}::Escaped", args=ONE) as f:
        pids: list[int] = f.post("/pids").json
        assert f.stop() == 0
        assert all(gone(pid) for pid in pids)


def test_a_stopped_supervisor_stops_no_request_and_catches_up_later() -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "2")) as f:
        before = f.pids()
        with load(f, hinted) as running:
            flow(running, count=30)
            f.process.send_signal(signal.SIGSTOP)
            flow(running, count=40)
            os.kill(before["runner0"], signal.SIGKILL)
            flow(running, count=40)
            f.process.send_signal(signal.SIGCONT)
            until(lambda: f.life(0).epoch == 2, within_s=20.0, what="epoch 2")
            f.wait_state(0, "ready")
            flow(running, count=50)
        assert running.answered() == running.sent
        assert running.statuses[503] + running.statuses[BROKEN] <= 1
        after = f.pids()
        assert (after["router"], after["runner1"]) == (before["router"], before["runner1"])


def test_a_runner_that_dies_while_it_ends_its_family_leaves_the_rest_to_its_guard(tmp_path: Path) -> None:
    # The interleaving, written down: the runner hears first that the supervisor is gone, begins to kill, and is
    # killed itself after the first one. Its guard hears later.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, threading\n"
        "if 'falctl.host' in sys.orig_argv:\n"
        "    from falctl import lifeline\n"
        "    really_kill, end_family = os.kill, lifeline.kill_family\n"
        "    def in_runner():\n"
        "        return threading.current_thread().name == 'control'\n"
        "    def kill(pid, number):\n"
        "        really_kill(pid, number)\n"
        "        if in_runner():\n"
        "            really_kill(os.getpid(), signal.SIGKILL)\n"
        "    def kill_family(*args, **options):\n"
        "        if not in_runner():\n"
        "            threading.Event().wait(1.0)\n"
        "        end_family(*args, **options)\n"
        "    os.kill, lifeline.kill_family = kill, kill_family\n"
        "    lifeline._die_with_parent = lambda parent: None\n"
    )
    with Falctl(f"{FAMILIES}::Daemon", args=ONE, python_path=[tmp_path]) as f:
        pids: list[int] = f.post("/pids").json
        f.kill()
        until(lambda: all(gone(pid) for pid in pids), within_s=5.0, what=f"none is left of {pids}")
