"""What is asked for now and lately, as a list, and its end by the owner's word."""

from __future__ import annotations

from typing import Any

from tests.router.client import Later, Reply, ask
from tests.router.fake_host import PATIENCE_S, Gate
from tests.router.harness import ADMIN_TOKEN, Setup, serving, waits
from tests.router.queue_calls import becomes, cancel, result, saying, status, submit
from tests.wait import until


def jobs(setup: Setup, query: str = "") -> dict[str, Any]:
    reply = ask(setup, "GET", f"/falctl/jobs{query}")
    assert reply.status == 200, reply.body
    table: dict[str, Any] = reply.json()
    assert table["schema"] == 1
    return table


def stop(setup: Setup, request: str, token: str = ADMIN_TOKEN) -> Reply:
    return ask(setup, path=f"/falctl/jobs/{request}/cancel", headers={"x-falctl-token": token})


def test_what_runs_waits_and_has_ended_is_listed_in_that_order() -> None:
    with serving() as setup:
        gate = Gate()
        setup.hosts[0].handler = saying(422)
        ended = submit(setup)["request_id"]
        becomes(setup, ended, "COMPLETED")
        setup.hosts[0].handler = gate
        running = submit(setup, body=b'{"model": "m"}')["request_id"]
        becomes(setup, running, "IN_PROGRESS")
        first, second = (submit(setup)["request_id"] for _ in range(2))
        later = Later()
        later.ask(setup, body=b'{"model": "caf\\u00e9"}')
        waits(setup, 3)
        told = jobs(setup)
        assert told["waiting"] == 3
        found = {row["request"]: row for row in told["jobs"]}
        (direct,) = found.keys() - {running, first, second, ended}
        assert list(found) == [running, first, second, direct, ended]
        assert (found[running]["state"], found[running]["runner"], found[running]["hint"]) == (
            "running",
            0,
            "m",
        )
        assert (found[running]["app"], found[running]["attempts"]) == ("owner/app", 1)
        assert [found[r]["position"] for r in (first, second)] == [0, 1]
        assert [found[r]["state"] for r in (first, second, direct)] == ["waiting"] * 3
        assert (found[direct]["kind"], found[direct]["hint"]) == ("direct", "café")
        assert (found[ended]["state"], found[ended]["status"]) == ("failed", 422)
        assert found[ended]["ended_ago_s"] >= 0
        few = jobs(setup, "?most=1")
        assert [row["request"] for row in few["jobs"]] == [running, first, direct, ended]
        assert ask(setup, "GET", "/falctl/jobs?most=x").status == 400
        gate.opened.set()
        assert [reply.status for reply in later.all()] == [200]
        becomes(setup, second, "COMPLETED")


def test_a_queued_job_is_cancelled_wherever_it_is() -> None:
    with serving() as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        running, waiting = submit(setup)["request_id"], submit(setup)["request_id"]
        becomes(setup, running, "IN_PROGRESS")
        assert stop(setup, waiting, token="no").status == 401
        assert stop(setup, waiting).status == 202
        assert result(setup, waiting).status == 499
        assert stop(setup, running).status == 202
        until(lambda: setup.hosts[0].cancelled == [running], within_s=PATIENCE_S, what="its host is asked")
        gate.opened.set()
        becomes(setup, running, "COMPLETED")
        assert stop(setup, running[:13]).status == 400
        assert stop(setup, running[:3]).status == 404, "too short to tell"
        assert cancel(setup, running).status == 400
        assert status(setup, waiting)["error_type"] == "client_cancelled"


def test_a_direct_request_is_cancelled_wherever_it_is_and_its_client_is_told() -> None:
    with serving() as setup:
        host, gate = setup.hosts[0], Gate()
        host.handler = gate
        running, waiting = Later(), Later()
        running.ask(setup, body=b"{}")
        until(lambda: host.executing, within_s=PATIENCE_S, what="it runs")
        waiting.ask(setup, body=b"{}")
        waits(setup, 1)
        (name,) = (row["request"] for row in jobs(setup)["jobs"] if row["state"] == "waiting")
        assert stop(setup, name).status == 202
        (reply,) = waiting.all()
        assert (reply.status, reply.json()["error_type"]) == (499, "client_cancelled")
        (name,) = host.executing
        assert stop(setup, name).status == 202
        assert host.cancelled == [name]
        gate.opened.set()
        (reply,) = running.all()
        assert reply.status == 200, "this host goes on; one that can stop answers 499"
        until(lambda: stop(setup, name).status == 400, within_s=PATIENCE_S, what="it is over")
        assert stop(setup, "nobody").status == 404
