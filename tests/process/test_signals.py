"""Ctrl-C, a second Ctrl-C, a window that is closed, `falctl down` and SIGHUP: what ends, how, and with which code."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Final

import pytest

from tests.process.load import Background
from tests.process.on_cpu import Falctl
from tests.process.terminal import CTRL_C, OnTerminal
from tests.process.test_kills import executing
from tests.wait import until

pytestmark = pytest.mark.process

ECHO: Final = "runners.echo:Echo"
FAMILIES: Final = Path(__file__).parent / "apps" / "families.py"
ONE: Final = ("--runners", "1")
STOPPED_S: Final = 10.0


def working(f: Falctl, seconds: float) -> Background:
    """Return a request that runs now, and will for *seconds*."""
    asked = Background(lambda: f.post("/sleep", {"seconds": seconds}))
    until(lambda: executing(f, 0), within_s=10.0, what="the request runs")
    return asked


def broken_or_503(asked: Background) -> bool:
    reply = asked.result(within_s=STOPPED_S)
    return reply is None or reply.status == 503


# --- on a terminal -------------------------------------------------------------------------------


def test_ctrl_c_while_idle_ends_it_with_code_0() -> None:
    with OnTerminal(ECHO, args=ONE) as f:
        f.press(CTRL_C)
        assert f.wait(within_s=STOPPED_S) == 0
        assert "Traceback" not in f.log
        assert "Unclosed" not in f.log


def test_ctrl_c_lets_a_running_request_finish() -> None:
    with OnTerminal(ECHO, args=ONE) as f:
        asked = working(f, 2.0)
        f.press(CTRL_C)
        f.wait_line("falctl: stopping", within_s=5.0)
        late = Background(lambda: f.post("/", {"x": 1}))
        reply = asked.result()
        assert reply is not None
        assert (reply.status, reply.json) == (200, {"slept_s": 2.0})
        assert f.wait(within_s=STOPPED_S) == 0
        assert broken_or_503(late), "nothing new is taken"


def test_ctrl_c_goes_to_falctl_alone() -> None:
    with OnTerminal(f"{FAMILIES}::Subprocess", args=ONE) as f:
        pids: list[int] = f.post("/pids").json
        groups = {os.getpgid(pid) for pid in pids}
        assert os.getpgid(f.process.pid) not in groups, "the terminal's signal would reach the runner too"
        f.press(CTRL_C)
        assert f.wait(within_s=STOPPED_S) == 0


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with OnTerminal(ECHO, args=ONE) as f:
        asked = working(f, 600.0)
        f.press(CTRL_C)
        f.wait_line("falctl: stopping", within_s=5.0)
        f.press(CTRL_C)
        assert f.wait(within_s=5.0) == 130
        assert broken_or_503(asked)


@pytest.mark.parametrize("kind", ["StuckInSleep", "StuckInC"])
def test_ctrl_c_while_a_setup_hangs_ends_it(kind: str, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    env = {"FALCTL_TEST_STUCK": str(stuck)}
    with OnTerminal(f"{FAMILIES}::{kind}", args=ONE, env=env, start=False) as f:
        f.start()
        until(stuck.exists, within_s=30.0, what="setup() hangs")
        f.press(CTRL_C)
        assert f.wait(within_s=5.0) == 130


def test_ctrl_c_at_any_moment_of_the_start_leaves_nothing_and_no_traceback() -> None:
    moments = ("no GPU is visible", r"cpu0\.starting", r"(router|cpu0)\.ready")
    for moment in moments:
        with OnTerminal(ECHO, args=ONE, start=False) as f:
            f.start()
            f.wait_line(moment)
            f.press(CTRL_C)
            assert f.wait(within_s=STOPPED_S) in {0, 130}
            assert "Traceback" not in f.log


def test_a_closed_window_ends_it() -> None:
    with OnTerminal(ECHO, args=ONE) as f:
        f.close_window()
        assert f.wait(within_s=STOPPED_S) == 0


def test_a_closed_window_lets_a_running_request_finish() -> None:
    with OnTerminal(ECHO, args=ONE) as f:
        asked = working(f, 2.0)
        f.close_window()
        reply = asked.result()
        assert reply is not None
        assert reply.status == 200
        assert f.wait(within_s=STOPPED_S) == 0


def test_a_window_that_is_closed_during_the_start_ends_it() -> None:
    with OnTerminal(ECHO, args=ONE, start=False) as f:
        f.start()
        f.wait_line(r"cpu0\.starting")
        f.close_window()
        assert f.wait(within_s=STOPPED_S) == 130


def test_a_falctl_under_nohup_outlives_its_window() -> None:
    with OnTerminal(ECHO, args=ONE, start=False) as f:
        f.prefix = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
        f.start()
        f.wait_ready()
        assert f.post("/", {"x": 1}).status == 200
        f.close_window()
        assert f.post("/", {"x": 2}).status == 200
        assert f.run("down").returncode == 0
        assert f.wait(within_s=1.0) == 0


# --- other signals, and `falctl down` ------------------------------------------------------------


def test_sigterm_is_like_ctrl_c() -> None:
    with Falctl(ECHO, args=ONE) as f:
        asked = working(f, 1.0)
        assert f.stop(signal.SIGTERM) == 0
        reply = asked.result()
        assert reply is not None
        assert reply.status == 200


def test_down_lets_a_running_request_finish() -> None:
    with Falctl(ECHO, args=ONE) as f:
        asked = working(f, 1.5)
        down = f.run("down")
        assert (down.returncode, down.stderr) == (0, "falctl: stopped\n")
        assert f.wait(within_s=1.0) == 0, "it has ended when `down` returns"
        reply = asked.result()
        assert reply is not None
        assert reply.status == 200


def test_down_now_does_not_wait() -> None:
    with Falctl(ECHO, args=ONE) as f:
        asked = working(f, 600.0)
        down = f.run("down", "--now", "--timeout", "60")
        assert (down.returncode, down.stderr) == (0, "falctl: stopped\n")
        assert f.wait(within_s=1.0) == 130
        assert broken_or_503(asked)


def test_down_now_is_understood_by_a_falctl_that_is_too_busy_to_look_twice() -> None:
    with Falctl(ECHO, args=ONE) as f:
        asked = working(f, 600.0)
        f.process.send_signal(signal.SIGSTOP)  # then what it is sent piles up, one of a kind
        down = threading.Thread(target=f.run, args=("down", "--now"))
        down.start()
        until(lambda: pending(f) >= {signal.SIGTERM}, within_s=10.0, what="`down` has sent its signals")
        f.process.send_signal(signal.SIGCONT)
        assert f.wait(within_s=STOPPED_S) == 130
        down.join()
        assert broken_or_503(asked)


def pending(f: Falctl) -> set[int]:
    """Return the signals that the supervisor has not taken yet."""
    status = Path(f"/proc/{f.process.pid}/status").read_text()
    mask = int(status.partition("ShdPnd:")[2].split()[0], 16)
    return {number for number in signal.Signals if mask >> (number - 1) & 1}


def test_down_that_runs_out_of_time_says_so() -> None:
    with Falctl(ECHO, args=ONE) as f:
        asked = working(f, 600.0)
        down = f.run("down", "--timeout", "0.5")
        assert down.returncode == 1
        assert down.stderr == (
            f"falctl: pid {f.process.pid} still runs after 0.5 s; try `falctl down --now`\n"
        )
        assert f.running()
        assert f.run("down", "--now").returncode == 0
        assert broken_or_503(asked)


def test_down_when_nothing_runs_has_its_own_code() -> None:
    with Falctl(ECHO, start=False) as f:
        down = f.run("down")
        assert (down.returncode, down.stderr) == (
            3,
            "falctl: falctl is not running; start it with `falctl up`\n",
        )


def test_a_drain_that_takes_too_long_is_cut_short() -> None:
    config = "[runners]\ndrain_timeout = 1.0\nteardown_timeout = 1.0\n"
    with Falctl(ECHO, config=config, args=ONE) as f:
        asked = working(f, 600.0)
        assert f.stop(within_s=STOPPED_S) == 0
        assert broken_or_503(asked)


# --- detached ------------------------------------------------------------------------------------


def log_of(f: Falctl) -> str:
    return f.home.log.read_text()


def test_a_detached_falctl_is_up_when_the_command_returns_and_reloads_on_sighup() -> None:
    with Falctl(ECHO, start=False) as f:
        path = f.cwd / "falctl.toml"
        path.write_text('[routing]\npolicy = "affinity"\n[runners]\ncpu_count = 1\n')
        up = f.run("up", "-d", "--port", "0", ECHO)
        assert up.returncode == 0, up.stderr
        listens, following = up.stderr.splitlines()[-2:]
        assert listens.startswith(f"falctl: 1 CPU runner of {ECHO} behind http://127.0.0.1:")
        assert "falctl status" in following
        f.url = listens.rpartition(" ")[2]
        assert f.post("/", {"x": 1}).json == {"x": 1}
        pid = json.loads(f.home.lock.read_text())["pid"]

        path.write_text('[routing]\npolicy = "fal"\n[runners]\ncpu_count = 2\n')
        os.kill(pid, signal.SIGHUP)
        until(lambda: f.status()["fleet"]["policy"] == "fal", within_s=5.0, what="the new policy is shown")
        until(lambda: "runners.cpu_count 1 -> 2 (needs a restart)" in log_of(f), within_s=5.0, what="said so")
        assert "routing.policy 'affinity' -> 'fal' (now)" in log_of(f)

        path.write_text('[routing]\npolicy = "best"\n')
        os.kill(pid, signal.SIGHUP)
        until(lambda: "config.refused routing.policy" in log_of(f), within_s=5.0, what="it is refused")
        assert "Traceback" not in log_of(f)
        assert f.status()["fleet"]["policy"] == "fal"
        assert f.post("/", {"x": 2}).json == {"x": 2}

        path.write_text(
            '[routing]\npolicy = "fal"\n[runners]\ncpu_count = 1\n[server]\nmax_body = 2000\n[log]\nlevel = "debug"\n'
        )
        os.kill(pid, signal.SIGHUP)
        until(lambda: "server.max_body 67108864 -> 2000 (now)" in log_of(f), within_s=5.0, what="reloaded")
        assert "runners.cpu_count 2 -> 1" not in log_of(f), "it had never become 2"
        until(lambda: "log.level level=debug" in log_of(f), within_s=60.0, what="the runner logs so, too")
        until(lambda: f.post("/", {"x": "x" * 3000}).status == 413, within_s=5.0, what="the router obeys")
        os.kill(f.board().router().pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert f.post("/", {"x": "x" * 3000}).status == 413, "the next router goes by what was reloaded"

        assert f.run("down").returncode == 0


def test_a_detached_falctl_survives_the_window_that_it_was_started_in() -> None:
    with OnTerminal(ECHO, args=("-d", *ONE), start=False) as f:
        f.start()
        assert f.wait() == 0
        f.url = json.loads(f.home.lock.read_text())["url"]
        assert f.post("/", {"x": 1}).json == {"x": 1}
        assert f.run("down").returncode == 0


def test_ctrl_c_on_a_detached_start_ends_the_wait_and_the_start() -> None:
    with OnTerminal(f"{FAMILIES}::StuckInSleep", args=("-d", *ONE), start=False) as f:
        f.environ["FALCTL_TEST_STUCK"] = str(f.cwd / "stuck")
        f.start()
        until((f.cwd / "stuck").exists, within_s=30.0, what="setup() hangs")
        f.press(CTRL_C)
        assert f.wait(within_s=STOPPED_S) == 130
        assert "Traceback" not in f.log
