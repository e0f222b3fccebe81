"""`falctl explain`, `why` and `record` against a real fleet: what happened is told, and can be replayed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from falctl.replay.trace import FIELDS, Job, Missing, read_trace
from tests.process.harness import Falctl, Reply
from tests.wait import until

pytestmark = pytest.mark.process

SIMULATED = "runners.simulated:SimulatedModels"
AUTO = "[simulated]\nload_s = 0.3\nexec_s = 0.01\n[cache]\nmax_models = 1\n[routing]\npolicy = 'auto'\n"
ONE = ("--runners", "1")


def told(f: Falctl, *arguments: str) -> dict[str, Any]:
    done = f.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def ended(f: Falctl, request: str) -> dict[str, Any]:
    """Return the story of *request*, which has been answered, once its host has told of its slot."""
    story: dict[str, Any] = {}

    def is_over() -> bool:
        story.update(told(f, "explain", request))
        return bool(story["state"] == "ended")

    until(is_over, within_s=30.0, what=f"{request} has ended")
    return story


@contextmanager
def recording(f: Falctl, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `falctl record` until the end of the block, beginning when it has said that it records."""
    process = subprocess.Popen(
        f._command("record", *arguments),
        cwd=f.cwd,
        env=f.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60.0, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("falctl: recording to "), line + process.stderr.read()
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def test_a_request_that_made_a_load_with_an_eviction_is_explained() -> None:
    with Falctl(SIMULATED, config=AUTO, args=ONE) as f:
        f.post("/", {"model": "old"})
        reply = f.post("/", {"model": "new"})
        assert reply.headers["x-falctl-cache"] == "disk", "its load was a job of its own, made for it"
        request = reply.headers["x-fal-request-id"]
        story = ended(f, request)
        assert (story["request"], story["hint"], story["client"]) == (request, "new", "127.0.0.1")
        [load] = story["loads"]
        assert (load["runner"], load["evict"], load["ok"], load["request"]) == (0, ["old"], True, request)
        [candidate] = load["candidates"]
        assert (candidate["standing"], candidate["evict"]) == ("open", ["old"])
        sent, end = story["steps"]
        assert (sent["kind"], sent["warm"], sent["cache"]) == ("dispatched", True, "disk")
        assert load["t_s"] <= load["ended_t_s"] <= sent["t_s"] <= end["t_s"]
        shown = f.run("explain", request[:8])
        assert shown.returncode == 0, shown.stderr
        lines = shown.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        texts = [" ".join(line.split()) for line in lines]
        assert f"request {request} wants new" in texts
        assert any(
            "load on runner 0, evicting old, 1 waits for it: nobody is warm for it" in t for t in texts
        )
        assert any("the load from disk on runner 0 ended after" in t for t in texts)
        assert any("sent to runner 0 (warm)" in t for t in texts)


def test_why_a_model_waits_for_its_busy_holder_is_told() -> None:
    with Falctl(SIMULATED, config=AUTO, args=ONE) as f, ThreadPoolExecutor(2) as pool:
        f.post("/", {"model": "m", "exec_s": 0})
        long = {"model": "m", "exec_s": 3600, "steps": 10_000}
        busy: list[Future[Reply]] = [pool.submit(f.post, "/", long)]
        until(lambda: f.status()["router"]["in_flight"] == [1], within_s=20.0, what="one executes")
        busy.append(pool.submit(f.post, "/", {"model": "m", "exec_s": 0}))
        [queued] = until(lambda: f.status()["queue"], within_s=20.0, what="one waits")
        assert queued["why"].startswith("runner 0 busy, ")
        why = told(f, "why", "m")
        assert "holds for runner 0, free " in why["conclusion"]
        [runner] = why["runners"]
        assert runner["candidate"]["standing"] == "warm, busy"
        assert [task["hint"] for task in runner["executing"]] == ["m"]
        shown = f.run("why", "m")
        assert "holds for runner 0" in " ".join(shown.stdout.split())
        assert max(map(len, shown.stdout.splitlines())) <= 80
        assert "runner 0 busy" in f.run("status", "--once").stdout
        other = told(f, "why", "other")
        assert other["conclusion"].startswith("nobody waits; nobody holds it; a request now would ")
        [running] = [job for job in told(f, "jobs")["jobs"] if job["state"] == "running"]
        assert f.run("cancel", running["request"]).returncode == 0
        assert [future.result().status for future in busy] == [499, 200]


def test_what_nobody_remembers_and_nobody_runs_is_said_in_one_line() -> None:
    with Falctl(SIMULATED, args=ONE) as f:
        done = f.run("explain", "11111111-2222")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith(
            "falctl: nothing is remembered of request 11111111-2222: this router knows"
        )
        assert len(done.stderr.splitlines()) == 1
        for arguments in (("record", "no/such/folder/t.csv"), ("record", "t.csv", "--for", "soon")):
            done = f.run(*arguments)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
        assert not (f.cwd / "t.csv").exists()
        f.stop()
        for arguments in (("explain", "x"), ("why", "m"), ("record", "t.csv")):
            done = f.run(*arguments)
            assert (done.returncode, done.stdout) == (3, "")
            assert done.stderr == "falctl: falctl is not running; start it with `falctl up`\n"
        assert not (f.cwd / "t.csv").exists()


COSTS = {"slow": (2.0, 0.05), "quick": (0.1, 2.0)}
"""Seconds of load and of execution that the simulated runner is told to take."""


def test_what_is_recorded_can_be_replayed_and_costs_what_the_runner_was_told() -> None:
    names = ("t.csv.gz", "t.jsonl")
    config = "[cache]\nmax_models = 1\n[routing]\npolicy = 'affinity'\n"
    with Falctl(SIMULATED, config=config, args=ONE) as f:
        f.post("/", {"model": "before", "load_s": 0, "exec_s": 0})
        with recording(f, names[0]) as first, recording(f, names[1]) as second:
            for model in ("slow", "slow", "quick", "slow"):
                load_s, exec_s = COSTS[model]
                assert f.post("/", {"model": model, "load_s": load_s, "exec_s": exec_s}).status == 200
            assert f.post("/", {"model": ""}).status == 422
            for name, process in zip(names, (first, second), strict=True):
                until(lambda n=name: read_rows(f, n) >= 4, within_s=30.0, what="all stand there")  # type: ignore[misc]
                process.send_signal(signal.SIGINT)
                out, _ = process.communicate()
                assert process.returncode == 0
                assert out.startswith(f"{name}: 4 requests\n")
                assert "1 that failed" in out
        for name in names:
            is_what_was_told(read_trace(f.cwd / name))
            replayed = told(f, "replay", name, "--policy", "auto,fal", "--runners", "1", "--slots", "1")
            assert replayed["policies"]["fal"]["requests"] == 4
            assert replayed["policies"]["fal"]["loads_per_1k"] == 750.0
        again = f.run("record", names[0])
        assert again.returncode == 2
        assert again.stderr == f"falctl: {names[0]} is there already; name another file, or remove it\n"


def is_what_was_told(jobs: list[Job]) -> None:
    assert [job.hint for job in jobs] == ["slow", "slow", "quick", "slow"]
    assert [job.t_s for job in jobs] == sorted(job.t_s for job in jobs)
    assert len({job.client for job in jobs}) == 1
    assert jobs[0].client.startswith("c")
    for job in jobs:
        load_s, exec_s = COSTS[job.hint]
        assert job.load_s >= load_s, "a hit costs what the last load of its model did"
        assert job.exec_s >= exec_s
        assert (job.load_s > job.exec_s) is (load_s > exec_s)


def read_rows(f: Falctl, name: str) -> int:
    try:
        return len(read_trace(f.cwd / name, missing=Missing(load_s=0.0)))
    except Exception:  # noqa: BLE001 - no row yet
        return 0


def test_a_recording_hides_names_tells_of_a_new_router_and_ends_with_falctl() -> None:
    with Falctl(SIMULATED, config="[simulated]\nload_s = 0\nexec_s = 0\n", args=ONE) as f:
        with recording(f, "t.csv", "--hash-hints") as process:
            f.post("/", {"model": "secret"})
            until(lambda: read_rows(f, "t.csv") == 1, within_s=30.0, what="the first row")
            old = f.pids()["router"]
            os.kill(old, signal.SIGKILL)
            until(lambda: f.pids()["router"] not in (0, old), within_s=30.0, what="a new router")
            f.post("/", {"model": "secret"})
            until(lambda: read_rows(f, "t.csv") == 2, within_s=30.0, what="the second row")
            f.stop()
            out, err = process.communicate()
            assert process.returncode == 0
        assert "gap: the router was restarted" in err
        assert "falctl has stopped" in err
        assert out.startswith("t.csv: 2 requests")
        text = (f.cwd / "t.csv").read_text()
        assert "secret" not in text
        assert "127.0.0.1" not in text
        jobs = read_trace(f.cwd / "t.csv", missing=Missing(load_s=0.0))
        assert len({(job.hint, job.client) for job in jobs}) == 1


def test_a_recording_can_be_given_a_time() -> None:
    with Falctl(SIMULATED, args=ONE) as f:
        done = f.run("record", "t.csv", "--for", "100ms")
        assert (done.returncode, done.stdout) == (0, "t.csv: 0 requests\n")
        assert (f.cwd / "t.csv").read_text().splitlines() == [",".join(FIELDS)]
