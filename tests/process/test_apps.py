"""Several apps in one falctl: a client reaches each by its alias, and none disturbs another."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.process.on_cpu import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

ECHO, MODELS = "runners.echo:Echo", "runners.simulated:SimulatedModels"
QUICK = "[runners]\nbackoff_min = 0.1\nrestarts_max = 100\n"
TWO = f"""{QUICK}
[apps.echo]
app = "{ECHO}"
cpu_count = 1
[apps.models]
app = "{MODELS}"
cpu_count = 2
"""
PATIENCE_S = 60.0


def falctl(config: str = TWO, **options: Any) -> Falctl:
    return Falctl(None, config=config, **options)


def submit(f: Falctl, app: str, body: dict[str, Any], path: str = "") -> str:
    reply = f.post(f"/queue/me/{app}{path}", body)
    assert reply.status == 200, reply.body
    request: str = reply.json["request_id"]
    return request


def state(f: Falctl, request: str) -> str:
    word: str = f.get(f"/queue/me/any/requests/{request}/status").json["status"]
    return word


def wait_for(f: Falctl, requests: list[str], word: str = "COMPLETED") -> None:
    until(
        lambda: all(state(f, request) == word for request in requests),
        within_s=PATIENCE_S,
        what=f"all {word}",
        every_s=0.2,
    )


def kill(f: Falctl, name: str) -> None:
    """Kill a process and wait for the next one in its place."""
    old = f.pids()[name]
    os.kill(old, signal.SIGKILL)
    until(lambda: f.pids()[name] not in (0, old), within_s=PATIENCE_S, what=f"a new {name}")


def test_a_client_reaches_each_app_by_its_alias() -> None:
    with falctl() as f:
        assert f.post("/run/me/echo", {"x": 1}).json == {"x": 1}
        assert [f.post("/run/me/echo/pid").json["runner"] for _ in range(2)] == [0, 0]
        done = f.post("/run/fal-ai/models", {"model": "m", "exec_s": 0.01, "load_s": 0.01})
        assert done.json["runner"] in (1, 2)
        assert f.post("/run/me/models", {"model": "m", "exec_s": 0.01}).headers["x-falctl-cache"] == "hit"
        events = f.post("/run/me/echo/stream", {"n": 2}).body
        assert events == b'data: {"n": 0}\n\ndata: {"n": 1}\n\n'
        for reply in (f.post("/", {}), f.post("/run/me/other", {})):
            assert reply.status == 404
            assert "echo, models" in reply.json["detail"]
        assert f.get("/health").json == {"status": "ok", "runners_ready": 3, "apps": {"echo": 1, "models": 2}}
        assert [runner["app"] for runner in f.status()["runners"]] == ["echo", "models", "models"]
        assert f.status()["fleet"]["app"] == "echo, models"
        printed = f.run("status", "--once").stdout
        assert "runner 0 echo" in printed
        assert "runner 2 models" in printed


def test_what_is_started_is_printed_app_by_app() -> None:
    with falctl() as f:
        assert f"3 CPU runners of echo, models behind {f.url}" in f.log
        assert f"echo: 1 runner of {ECHO} on the CPU" in f.log
        assert f"models: 2 runners of {MODELS} on the CPU" in f.log


def test_the_commands_ask_of_which_app() -> None:
    with falctl() as f:
        request = f.post("/run/me/models", {"model": "m", "exec_s": 0.01}).headers["x-fal-request-id"]
        assert "of models" in f.run("explain", request).stdout
        assert f.run("why", "m").returncode == 0
        unknown = f.run("why", "who-knows")
        assert unknown.returncode == 1
        assert "app=echo|models" in unknown.stderr
        assert f.run("why", "who-knows", "--app", "models").returncode == 0
        assert "--app" in f.run("record", "t.csv").stderr
        drawn = f.run("run", "m", "seven", "--app", "nobody")
        assert (drawn.returncode, "there are echo, models" in drawn.stderr) == (1, True)


def test_kills_in_one_app_do_not_disturb_the_other() -> None:
    failed: list[Any] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            reply = f.post("/run/me/models", {"model": "m", "exec_s": 0.01, "load_s": 0.01})
            if reply.status != 200:
                failed.append(reply)

    with falctl() as f:
        caller = threading.Thread(target=call)
        caller.start()
        try:
            for _ in range(3):
                kill(f, "runner0")
                f.wait_state(0, "ready")
                assert f.post("/run/me/echo", {"x": 1}).json == {"x": 1}
        finally:
            over.set()
            caller.join(PATIENCE_S)
        assert failed == []
        assert [f.life(runner).restarts for runner in range(3)] == [3, 0, 0]


def test_a_new_router_finds_the_runners_of_every_app() -> None:
    with falctl() as f:
        f.post("/run/me/models", {"model": "m", "exec_s": 0.01, "load_s": 0.01})
        kill(f, "router")
        assert f.post("/run/me/echo", {"x": 1}).json == {"x": 1}
        again = f.post("/run/me/models", {"model": "m", "exec_s": 0.01})
        assert again.headers["x-falctl-cache"] == "hit", "it knows who is warm"


def test_jobs_of_all_apps_survive_kills_of_everything() -> None:
    with falctl() as f:
        jobs = [submit(f, "echo", {"seconds": 0.2}, "/sleep") for _ in range(10)]
        jobs += [submit(f, "models", {"model": f"m{n % 2}", "exec_s": 0.2, "load_s": 0.1}) for n in range(10)]
        for name in ("router", "runner0", "router", "runner1"):
            kill(f, name)
        f.kill()
        until(lambda: not f.family(), within_s=10.0, what="nothing is left of it")
        f.start_again()
        wait_for(f, jobs)
        results = [f.get(f"/queue/me/any/requests/{job}") for job in jobs]
        assert [r.status for r in results] == [200] * 20
        assert {r.json["slept_s"] for r in results[:10]} == {0.2}
        assert {r.json["model"] for r in results[10:]} == {"m0", "m1"}


def test_a_job_of_an_app_that_is_not_configured_any_more_waits_for_it() -> None:
    config = TWO + "[queue]\nkeep = 3600\n"
    with falctl(config.replace("[runners]", "[runners]\ndrain_timeout = 0")) as f:
        # Behind one that runs longer than this test, so that none of them can have begun.
        blocking = submit(f, "echo", {"seconds": 600}, "/sleep")
        wait_for(f, [blocking], "IN_PROGRESS")
        waiting, unwanted = submit(f, "echo", {"n": 1}), submit(f, "echo", {"n": 2})
        f.stop()
        path = f.cwd / "test.toml"
        both = path.read_text()
        path.write_text(both.replace("[apps.echo]", "[apps.other]"))
        f.start_again()
        assert "it is not configured" in f.wait_line("jobs.wait app=echo count=3")
        assert f.post("/run/me/other", {"n": 0}).json == {"n": 0}
        assert {state(f, job) for job in (blocking, waiting, unwanted)} == {"IN_QUEUE"}
        for job in (blocking, unwanted):
            cancelled = f.put(f"/queue/me/echo/requests/{job}/cancel")
            assert cancelled.status == 202
        f.stop()
        path.write_text(both)
        f.start_again()
        wait_for(f, [waiting])
        assert f.get(f"/queue/me/echo/requests/{waiting}").json == {"n": 1}
        assert f.get(f"/queue/me/echo/requests/{unwanted}").status == 499


def test_an_app_on_the_command_line_is_the_only_one() -> None:
    with Falctl(ECHO, config=TWO, args=("--runners", "1")) as f:
        assert f.post("/", {"x": 1}).json == {"x": 1}
        assert f.post("/run/me/whatever", {"x": 2}).json == {"x": 2}
        assert len(f.status()["runners"]) == 1


def test_a_reload_says_that_apps_need_a_restart() -> None:
    with Falctl(None, start=False) as f:
        path = f.cwd / "falctl.toml"
        path.write_text(TWO)
        assert f.run("up", "-d", "--port", "0").returncode == 0
        instance = json.loads(f.home.lock.read_text())
        f.url = instance["url"]
        path.write_text(
            TWO.replace("cpu_count = 2", "cpu_count = 1")
            + f'[apps.third]\napp = "{ECHO}"\n[queue]\nmax = 5\n'
        )
        os.kill(instance["pid"], signal.SIGHUP)
        log = f.home.log
        until(lambda: "router.reloaded" in log.read_text(), within_s=PATIENCE_S, what="reloaded")
        for line in (
            "apps.models.cpu_count 2 -> 1 (needs a restart)",
            f"apps.third.app None -> '{ECHO}' (needs a restart)",
            "queue.max 1000 -> 5 (now)",
        ):
            assert line in log.read_text()
        assert f.post("/run/me/models", {"model": "m", "exec_s": 0.01, "load_s": 0.01}).status == 200
        assert f.post("/run/me/third", {}).status == 404
        assert f.run("down").returncode == 0


def test_one_that_cannot_start_is_named() -> None:
    broken = TWO + f'[apps.broken]\napp = "{Path(__file__).with_name("nothing.py")}::X"\n'
    with falctl(broken, start=False) as f:
        f.start()
        assert f.wait(within_s=PATIENCE_S) == 2
        assert any("broken:cpu" in line and "nothing.py" in line for line in f.lines)
