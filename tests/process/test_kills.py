"""SIGKILL and SIGSTOP of a runner and of the router while clients work: every request ends, nothing warm is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from falctl.board.rows import RunnerRow
from falctl.clock import monotonic_s
from tests.process.load import BROKEN, Background, Load, load
from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

SIMULATED = "runners.simulated:SimulatedModels"
APPS = Path(__file__).parent / "apps"
MODELS = 4
QUICK = "[runners]\nbackoff_min = 0.2\n[simulated]\nload_s = 0.05\nexec_s = 0.01\n"
STALL_S = 5.0
HANGS = QUICK.replace("[simulated]", f"stall_timeout = {STALL_S}\n[simulated]")
"""Only for tests of it: where ten others want the core, a runner that works may not be seen for seconds."""


def hinted(number: int) -> tuple[str, dict[str, Any], dict[str, str]]:
    model = f"m{number % MODELS}"
    return "/", {"model": model}, {"X-Fal-Runner-Hint": model}


def flow(running: Load, *, count: int) -> None:
    """Wait until *count* more requests have been answered well."""
    wanted = running.statuses[200] + count
    until(lambda: running.statuses[200] >= wanted, within_s=30.0, what=f"{count} more answers")


def row(f: Falctl, runner: int) -> RunnerRow:
    """Return what a runner says of itself."""
    found = f.board().runner(runner)
    assert found is not None, f"runner {runner} has no row"
    return found


def executing(f: Falctl, runner: int) -> bool:
    said = f.board().runner(runner)
    return said is not None and bool(said.executing)


def gone(pid: int) -> bool:
    """Return whether a process has ended; process 1 of a container may leave it a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"Z")
    except OSError:
        return True


def test_a_killed_runner_costs_its_own_request_and_no_other() -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "2")) as f, load(f, hinted) as running:
        flow(running, count=50)
        old = f.pids()["runner0"]
        until(lambda: executing(f, 0), within_s=10.0, what="runner 0 works")
        os.kill(old, signal.SIGKILL)
        until(lambda: f.life(0).epoch == 2, within_s=20.0, what="epoch 2")
        assert f.life(0).restarts == 1
        f.wait_state(0, "ready")
        assert row(f, 0).epoch == 2
        flow(running, count=100)
        until(lambda: row(f, 0).served > 0, within_s=10.0, what="the new runner serves")
        assert f.pids()["runner0"] != old
    assert running.answered() == running.sent
    statuses = running.statuses
    assert set(statuses) <= {200, 503, BROKEN}
    assert statuses[503] + statuses[BROKEN] <= 1, "one slot, one request in flight"
    for lost in running.of(503):
        assert lost.json["error_type"] == "runner_disconnected"
        assert lost.headers["x-fal-error-type"] == "runner_disconnected"
        assert lost.headers["x-falctl-origin"] == "router"
        assert set(lost.json) == {"detail", "error_type"}


def test_the_hints_of_a_killed_runner_are_cleared_before_it_is_back() -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "1")) as f:
        assert f.post("/", {"model": "a"}, headers={"X-Fal-Runner-Hint": "a"}).status == 200
        until(lambda: row(f, 0).hints == ("a",), within_s=5.0, what="the hint is published")
        os.kill(f.pids()["runner0"], signal.SIGKILL)
        until(lambda: f.life(0).epoch == 2, within_s=20.0, what="epoch 2")
        said = f.board().runner(0)
        assert said is None or said.epoch == 2, "a dead runner is warm for nothing"
        f.wait_state(0, "ready")
        again = f.post("/", {"model": "a"}, headers={"X-Fal-Runner-Hint": "a"})
        assert again.headers["x-falctl-cache"] == "disk"


def test_a_stream_whose_runner_is_killed_breaks_without_a_final_chunk() -> None:
    with Falctl("runners.echo:Echo", config=QUICK, args=("--runners", "1")) as f:
        client = http.client.HTTPConnection(f.url.removeprefix("http://"), timeout=30.0)
        body = json.dumps({"n": 1000, "pause_s": 0.05})
        client.request("POST", "/stream", body, {"content-type": "application/json"})
        answer = client.getresponse()
        assert answer.status == 200
        assert answer.read1().startswith(b"data: ")
        os.kill(f.pids()["runner0"], signal.SIGKILL)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        client.close()


def test_a_runner_that_is_stopped_while_it_works_is_hung_and_replaced() -> None:
    with Falctl("runners.echo:Echo", config=HANGS, args=("--runners", "2")) as f:
        asked = Background(lambda: f.post("/sleep", {"seconds": 600}))
        until(lambda: executing(f, 0) or executing(f, 1), within_s=10.0, what="a runner works")
        runner = 0 if executing(f, 0) else 1
        stopped = f.pids()[f"runner{runner}"]
        os.kill(stopped, signal.SIGSTOP)
        assert f.post("/", {"x": 1}).status == 200, "the other runner serves meanwhile"
        lost = asked.result()
        assert lost is not None
        assert (lost.status, lost.json["error_type"]) == (503, "runner_disconnected")
        until(lambda: gone(stopped), within_s=5.0, what="the hung runner is gone")
        f.wait_line(r"cpu\d\.killed epoch=1 reason=hung: .*runners\.stall_timeout")
        until(lambda: f.life(runner).epoch == 2, within_s=10.0, what="epoch 2")
        f.wait_state(runner, "ready")


def test_a_runner_that_is_stopped_before_it_takes_its_request_is_hung_too() -> None:
    with Falctl("runners.echo:Echo", config=HANGS, args=("--runners", "1")) as f:
        os.kill(f.pids()["runner0"], signal.SIGSTOP)
        lost = f.post("/", {"x": 1})
        assert (lost.status, lost.json["error_type"]) == (503, "runner_disconnected")
        until(lambda: f.life(0).epoch == 2, within_s=10.0, what="epoch 2")
        f.wait_state(0, "ready")
        assert f.post("/", {"x": 1}).status == 200


def test_a_fleet_that_was_stopped_as_a_whole_goes_on_and_nobody_passes_for_hung(tmp_path: Path) -> None:
    # As `docker pause` does it. The supervisor wakes first, and finds everybody silent for longer than is allowed.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'up' in sys.orig_argv:\n"
        "    import falctl.supervisor.fleet as fleet\n"
        f"    fleet.ROUTER_SILENCE_MAX_S = {STALL_S}\n"
    )
    with Falctl("runners.echo:Echo", config=HANGS, python_path=[tmp_path], args=("--runners", "1")) as f:
        asked = Background(lambda: f.post("/sleep", {"seconds": STALL_S + 3}))
        until(lambda: executing(f, 0), within_s=10.0, what="the runner works")
        before = f.pids()
        for pid in before.values():
            os.kill(pid, signal.SIGSTOP)
        pass_by(STALL_S + 1)
        os.kill(before["supervisor"], signal.SIGCONT)
        pass_by(1.0)  # it looks four times a second
        for pid in before.values():
            os.kill(pid, signal.SIGCONT)
        reply = asked.result()
        assert reply is not None
        assert reply.status == 200
        assert f.pids() == before


def pass_by(seconds: float) -> None:
    """Return after *seconds* in which something else is stopped."""
    began_at = monotonic_s()
    until(lambda: monotonic_s() - began_at > seconds, within_s=seconds, what=f"{seconds} s have passed")


LOADS = '[routing]\npolicy = "auto"\n'


def test_a_load_job_that_never_ends_costs_its_runner() -> None:
    config = QUICK.replace("[simulated]", "request_timeout = 1.0\n[simulated]") + LOADS
    with Falctl(SIMULATED, config=config, args=("--runners", "1")) as f:
        asked = Background(lambda: f.post("/", {"model": "endless@3600"}))
        f.wait_line(r"cpu0\.killed epoch=1 reason=a request or a load ran for more than 1 s")
        assert asked.pending, "nobody has begun to work on it"
        until(lambda: f.life(0).epoch == 2, within_s=10.0, what="epoch 2")


def test_a_runner_that_is_stopped_before_it_takes_its_load_job_is_hung_too() -> None:
    with Falctl(SIMULATED, config=HANGS + LOADS, args=("--runners", "1")) as f:
        os.kill(f.pids()["runner0"], signal.SIGSTOP)
        assert f.post("/", {"model": "m"}).status == 200, "by its next incarnation"
        assert f.life(0).epoch == 2


def test_a_runner_that_is_stopped_in_a_load_job_is_hung_too() -> None:
    with Falctl(SIMULATED, config=HANGS + LOADS, args=("--runners", "1")) as f:
        asked = Background(lambda: f.post("/", {"model": "slow@4"}))
        until(lambda: any(m.state == "loading" for m in row(f, 0).models), within_s=10.0, what="it loads")
        os.kill(f.pids()["runner0"], signal.SIGSTOP)
        reply = asked.result(within_s=60.0)
        assert reply is not None
        assert (reply.status, f.life(0).epoch) == (200, 2)


def test_a_runner_that_is_stopped_while_idle_is_left_alone() -> None:
    with Falctl("runners.echo:Echo", config=HANGS, args=("--runners", "1")) as f:
        before = f.pids()
        os.kill(before["runner0"], signal.SIGSTOP)
        stopped_at = monotonic_s()
        until(
            lambda: monotonic_s() - stopped_at > STALL_S + 1, within_s=10.0, what="stall_timeout has passed"
        )
        os.kill(before["runner0"], signal.SIGCONT)
        assert f.post("/", {"x": 1}).status == 200
        assert f.pids() == before
        assert f.life(0).epoch == 1


def test_a_killed_router_loses_no_warm_model_and_no_waiting_client() -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "2")) as f:
        for model in ("a", "b", "a", "b"):
            assert f.post("/", {"model": model}, headers={"X-Fal-Runner-Hint": model}).status == 200
        before, loads = f.pids(), [row(f, i).loads for i in range(2)]
        os.kill(before["router"], signal.SIGKILL)
        until(lambda: gone(before["router"]), within_s=5.0, what="the router is gone")
        waiting = [Background(lambda: f.post("/", {"model": "a"}, headers={"X-Fal-Runner-Hint": "a"}))
                   for _ in range(10)]  # fmt: skip
        replies = [one.result() for one in waiting]
        assert [reply.status for reply in replies if reply is not None] == [200] * 10
        assert {reply.headers["x-falctl-cache"] for reply in replies if reply is not None} == {"hit"}
        until(lambda: f.pids()["router"] != before["router"], within_s=5.0, what="the new router's row")
        after = f.pids()
        assert (after["runner0"], after["runner1"]) == (before["runner0"], before["runner1"])
        assert [row(f, i).loads for i in range(2)] == loads
        assert [f.life(i).epoch for i in range(2)] == [1, 1]


@pytest.mark.parametrize("path", ["/sync", "/stubborn"])
def test_a_router_that_is_killed_makes_no_runner_do_two_jobs(path: str) -> None:
    with Falctl(f"{APPS / 'alone.py'}::Alone", config=QUICK, args=("--runners", "1")) as f:
        lost = Background(lambda: f.post(path, {"seconds": 4.0}))
        until(lambda: executing(f, 0), within_s=10.0, what="the runner works")
        os.kill(f.pids()["router"], signal.SIGKILL)
        assert lost.result() is None, "its connection broke with the router"
        reply = f.post(path, {"seconds": 0.0})
        assert reply.json == {"met": 0, "done": 2}, "it waited for the job that the old router had sent"
        assert f.post("/counts").json == {"met": 0, "done": 2}, "and nothing was bounced in between"
        assert "request.raised" not in f.log
        assert row(f, 0).executing == ()


def test_a_router_that_is_killed_under_load_breaks_what_it_held_and_nothing_else() -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "2")) as f, load(f, hinted) as running:
        flow(running, count=50)
        os.kill(f.pids()["router"], signal.SIGKILL)
        flow(running, count=100)
        runners = [f.board().runner(i) for i in range(2)]
        assert [f.life(i).epoch for i in range(2)] == [1, 1]
        assert sum(row.loads for row in runners if row is not None) <= MODELS * 2
    assert running.answered() == running.sent
    assert set(running.statuses) <= {200, BROKEN}
    assert running.statuses[BROKEN] <= 8, "one per client: those whose request it held"


def test_a_stopped_router_is_shown_and_left_alone() -> None:
    with Falctl("runners.echo:Echo", config=QUICK, args=("--runners", "2")) as f:
        assert f.post("/", {"x": 1}).status == 200
        before = f.pids()
        os.kill(before["router"], signal.SIGSTOP)
        until(
            lambda: "router has not answered" in f.run("status", "--once").stdout,
            within_s=20.0,
            what="the status says that the router is silent",
        )
        said = f.run("status", "--once").stdout
        assert "runner 0" in said
        assert "runner 1" in said
        waiting = Background(lambda: f.post("/", {"x": 2}))
        os.kill(before["router"], signal.SIGCONT)
        reply = waiting.result()
        assert reply is not None
        assert reply.status == 200
        assert f.pids() == before


def test_a_router_that_was_stopped_longer_than_silence_is_allowed_gets_a_moment_to_go_on(
    tmp_path: Path,
) -> None:
    # The real command, with that limit shortened from 30 s: sitecustomize runs before anything of ours.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.argv[:1] == ['-m'] and 'up' in sys.orig_argv:\n"
        "    import falctl.supervisor.fleet as fleet\n"
        "    fleet.ROUTER_SILENCE_MAX_S = 4.0\n"
    )
    with Falctl("runners.echo:Echo", config=QUICK, python_path=[tmp_path], args=("--runners", "1")) as f:
        before = f.pids()
        for _ in range(2):  # the supervisor looks four times a second: it would catch an unkind moment soon
            os.kill(before["router"], signal.SIGSTOP)
            stopped_at = monotonic_s()
            until(lambda: monotonic_s() - stopped_at > 5.0, within_s=10.0, what="silent for long")  # noqa: B023
            os.kill(before["router"], signal.SIGCONT)
            assert f.post("/", {"x": 1}).status == 200
        assert f.pids() == before


def test_a_router_whose_loop_hangs_is_replaced(tmp_path: Path) -> None:
    # A hang that is not a stop: on a signal the router blocks in C, and holds the interpreter's lock.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, os, threading\n"
        "if 'up' in sys.orig_argv:\n"
        "    import falctl.supervisor.fleet as fleet\n"
        "    fleet.ROUTER_SILENCE_MAX_S = 4.0\n"
        "if 'falctl.router' in sys.orig_argv:\n"
        "    import ctypes, signal\n"
        "    signal.signal(signal.SIGUSR1, lambda *_: ctypes.PyDLL(None).sleep(1000))\n"
    )
    with Falctl("runners.echo:Echo", config=QUICK, python_path=[tmp_path], args=("--runners", "1")) as f:
        before = f.pids()
        os.kill(before["router"], signal.SIGUSR1)
        until(lambda: gone(before["router"]), within_s=10.0, what="the hung router is killed")
        assert f.post("/", {"x": 1}).status == 200
        assert f.pids()["runner0"] == before["runner0"]
        f.wait_line(r"router\.killed epoch=1 reason=no beat")
