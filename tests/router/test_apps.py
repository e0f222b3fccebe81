"""Several apps behind one router: each by its alias, each with runners and a queue of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from starlette.types import Send

from falctl import wire
from tests.router.client import Later, Raw, Reply, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer, wait_on_loop
from tests.router.harness import Setup, log_of, serving
from tests.wait import until

TWO = {"draw": [0], "speak": [1]}
JSON = {"content-type": "application/json"}


async def say_path(seen: Seen, send: Send) -> None:
    await answer(send, seen.method.encode() + b" " + seen.raw_path)


@pytest.fixture
def two() -> Iterator[Setup]:
    with serving(runners=2, apps=TWO, handler=say_path) as setup:
        yield setup


def paths(setup: Setup, runner: int) -> list[bytes]:
    return [seen.raw_path for seen in setup.hosts[runner].seen]


def submit(setup: Setup, app: str, path: str = "") -> str:
    reply = ask(setup, path=f"/queue/{app}{path}", body=b"{}", headers=JSON)
    assert reply.status == 200, reply.body
    request: str = reply.json()["request_id"]
    return request


def status(setup: Setup, request: str) -> str:
    word: str = ask(setup, "GET", f"/queue/me/draw/requests/{request}/status").json()["status"]
    return word


def wait_for(setup: Setup, request: str, state: str = "COMPLETED") -> None:
    until(lambda: status(setup, request) == state, within_s=PATIENCE_S, what=f"{request} {state}")


# --- addressing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alias", "runner"), [("draw", 0), ("speak", 1)])
def test_a_call_goes_to_the_app_of_its_alias_which_sees_the_path_behind_it(
    two: Setup, alias: str, runner: int
) -> None:
    for method, path, seen in [
        ("POST", f"/run/any-owner/{alias}", b"POST /"),
        ("POST", f"/run/fal-ai/{alias}/a/b%20c?x=1", b"POST /a/b%20c"),
        ("GET", f"/run/workflows/me/{alias}/x", b"GET /x"),
        ("DELETE", f"/run/1/{alias}/", b"DELETE /"),
    ]:
        reply = ask(two, method, path)
        assert (reply.status, reply.body) == (200, seen)
        assert reply.value("x-falctl-runner") == str(runner)
        assert reply.value("x-fal-request-id")
    assert two.hosts[runner].seen[1].query == b"x=1"
    assert not paths(two, 1 - runner)


def test_what_says_the_same_on_all_runners_of_an_app_takes_no_slot(two: Setup) -> None:
    assert ask(two, "GET", "/run/me/speak/openapi.json").body == b"GET /openapi.json"
    assert ask(two, "GET", "/run/me/draw/docs").value("x-falctl-runner") is None
    assert (paths(two, 0), paths(two, 1)) == ([b"/docs"], [b"/openapi.json"])


@pytest.mark.parametrize("room", ["run", "queue"])
def test_an_unknown_alias_is_refused_with_those_there_are(two: Setup, room: str) -> None:
    refused(ask(two, path=f"/{room}/me/drow", body=b"{}"), "no app 'drow'; there are draw, speak")


@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("POST", "/x"), ("GET", "/docs")])
def test_a_path_that_names_no_app_is_refused_with_how_to(two: Setup, method: str, path: str) -> None:
    refused(ask(two, method, path), "name one of the apps draw, speak in the path: /run/{owner}/{alias}")


@pytest.mark.parametrize("path", ["/run", "/run/", "/run/me", "/run/me/", "/run/comfy/me"])
def test_half_an_address_is_refused(two: Setup, path: str) -> None:
    refused(ask(two, path=path), "apps are addressed as /run/{owner}/{alias}")


@pytest.mark.parametrize("path", ["falctl/events", "%66alctl/cancel/x", "falctl", "%66%61lctl/load"])
def test_nobody_speaks_to_a_runner_as_if_he_were_the_router(two: Setup, path: str) -> None:
    for room in ("run", "queue"):
        refused(ask(two, path=f"/{room}/me/draw/{path}", body=b"{}"), "/falctl is no path of an app")
    assert not two.hosts[0].cancelled


def refused(reply: Reply, detail: str) -> None:
    assert reply.status == 404
    assert detail in reply.json()["detail"]
    assert reply.json()["error_type"] == reply.value("x-fal-error-type") == "not_found"
    assert reply.value("x-falctl-origin") == "router"


def test_with_one_app_any_owner_and_alias_address_it() -> None:
    for apps in (None, {"draw": [0]}):
        with serving(apps=apps, handler=say_path) as setup:
            assert ask(setup, path="/run/me/whatever/x").body == b"POST /x"
            assert ask(setup, path="/x").body == b"POST /x"
            request = submit(setup, "fal-ai/whatever", "/y")
            wait_for(setup, request)
            assert paths(setup, 0) == [b"/x", b"/x", b"/y"]


# --- independence ----------------------------------------------------------------------------------


def test_one_app_that_is_full_does_not_hold_up_or_fill_the_other() -> None:
    gate = Gate()
    with serving(runners=2, apps=TWO, config={"queue": {"max": 1, "max_per_client": 0}}) as setup:
        setup.hosts[0].handler = gate
        later = Later()
        later.ask(setup, path="/run/me/draw")
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        later.ask(setup, path="/run/me/draw")
        until(lambda: setup.status()["queued"] == 1, within_s=PATIENCE_S, what="one waits")
        assert ask(setup, path="/run/me/draw").status == 429
        assert ask(setup, path="/run/me/speak").status == 200
        gate.opened.set()
        assert [reply.status for reply in later.all()] == [200, 200]


def test_the_runners_of_one_app_going_down_leave_the_other_serving(two: Setup) -> None:
    two.change(0, 1, "failed", "because of this test")
    until(lambda: ask(two, path="/run/me/draw").status == 503, within_s=PATIENCE_S, what="draw has no runner")
    assert ask(two, path="/run/me/speak").status == 200
    health = ask(two, "GET", "/health")
    assert health.status == 200
    assert health.json() == {
        "status": "no runner of draw is ready",
        "runners_ready": 1,
        "apps": {"draw": 0, "speak": 1},
    }


def test_a_client_that_leaves_a_call_under_run_has_it_cancelled(two: Setup) -> None:
    gate = Gate()
    two.hosts[1].handler = gate
    with Raw(two, request_bytes("/run/me/speak/x")):
        until(lambda: two.hosts[1].executing, within_s=PATIENCE_S, what="executing")
    until(lambda: two.hosts[1].cancelled, within_s=PATIENCE_S, what="cancelled")
    gate.opened.set()


def test_a_start_deadline_counts_under_run_as_everywhere(two: Setup) -> None:
    gate = Gate()
    two.hosts[0].handler = gate
    later = Later()
    later.ask(two, path="/run/me/draw")
    until(lambda: two.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    late = ask(two, path="/run/me/draw", headers={"x-fal-request-timeout": "0.2"})
    assert (late.status, late.value("x-fal-error-type")) == (504, "request_timeout")
    assert late.value("x-fal-request-timeout-type") == "user"
    gate.opened.set()
    later.all()


def test_a_stream_under_run_comes_piece_by_piece(two: Setup) -> None:
    go_on = threading.Event()

    async def stream(_: Seen, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await wait_on_loop(go_on)
        await send({"type": "http.response.body", "body": b"two"})

    two.hosts[0].handler = stream
    with Raw(two, request_bytes("/run/me/draw/stream")) as raw:
        raw.read_until(b"one")
        go_on.set()
        raw.read_until(b"two")


# --- the durable queue -----------------------------------------------------------------------------


def test_a_job_goes_to_the_app_of_its_alias_and_waits_in_a_line_of_its_own(two: Setup) -> None:
    gate = Gate()
    two.hosts[0].handler = gate
    first, second = submit(two, "me/draw", "/a"), submit(two, "me/draw", "/b")
    wait_for(two, first, "IN_PROGRESS")
    other = submit(two, "me/speak", "/c")
    wait_for(two, other)
    assert paths(two, 1) == [b"/c"]
    reply = ask(two, "GET", f"/queue/me/draw/requests/{second}/status").json()
    assert reply["queue_position"] == 0
    full = ask(two, path="/queue/me/draw?fal_max_queue_length=0", body=b"{}")
    assert full.status == 429
    assert ask(two, path="/queue/me/speak?fal_max_queue_length=0", body=b"{}").status == 200
    gate.opened.set()
    wait_for(two, second)
    assert paths(two, 0) == [b"/a", b"/b"]


def test_jobs_of_all_apps_outlive_the_router(two: Setup) -> None:
    gate = Gate()
    for host in two.hosts.values():
        host.handler = gate
    jobs = [submit(two, f"me/{alias}", f"/{alias}{n}") for alias in TWO for n in range(2)]
    until(lambda: all(h.executing for h in two.hosts.values()), within_s=PATIENCE_S, what="executing")
    assert two.router is not None
    two.router.kill()
    gate.opened.set()
    two.start_router()
    for job in jobs:
        wait_for(two, job)
    for alias, runners in TWO.items():
        assert set(paths(two, runners[0])) == {f"/{alias}{n}".encode() for n in range(2)}


def restarted_with(setup: Setup, apps: dict[str, list[int]]) -> None:
    assert setup.router is not None
    setup.router.kill()
    setup.apps = apps
    setup.start_router()


def test_a_job_whose_app_is_gone_waits_until_it_is_back_and_no_other_gets_it(two: Setup) -> None:
    gate = Gate()
    two.hosts[0].handler = gate
    running = submit(two, "me/draw", "/running")
    until(lambda: two.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    waiting, unwanted = submit(two, "me/draw", "/waiting"), submit(two, "me/draw", "/unwanted")
    late = ask(two, path="/queue/me/draw", body=b"{}", headers={"x-fal-request-timeout": "1"}).json()[
        "request_id"
    ]
    for apps in ({"paint": [0], "speak": [1]}, {"paint": [0, 1]}, {}):
        restarted_with(two, apps)
        gate.opened.set()
        assert "jobs.wait app=draw" in log_of(two)
        assert {status(two, job) for job in (running, waiting)} == {"IN_QUEUE"}
    assert ask(two, "PUT", f"/queue/me/draw/requests/{unwanted}/cancel").status == 202
    wait_for(two, unwanted)
    wait_for(two, late)
    seen = len(paths(two, 0))
    two.hosts[0].handler = say_path
    restarted_with(two, TWO)
    for job in (running, waiting):
        wait_for(two, job)
    assert sorted(paths(two, 0)[seen:]) == [b"/running", b"/waiting"]


def test_a_job_of_the_days_of_one_app_goes_to_the_one_that_its_client_wrote() -> None:
    gate = Gate()
    with serving(runners=2, handler=gate) as setup:
        jobs = [submit(setup, "me/speak", "/first"), submit(setup, "me/speak", "/second")]
        stray = submit(setup, "me/sing", "/third")
        until(lambda: any(h.executing for h in setup.hosts.values()), within_s=PATIENCE_S, what="executing")
        assert setup.router is not None
        setup.router.kill()
        gate.opened.set()
        setup.apps = TWO
        for host in setup.hosts.values():
            host.seen.clear()
        setup.start_router()
        for job in jobs:
            wait_for(setup, job)
        assert set(paths(setup, 1)) <= {b"/first", b"/second"}
        assert not paths(setup, 0)
        assert status(setup, stray) in ("IN_QUEUE", "COMPLETED")


# --- what is told ----------------------------------------------------------------------------------


def test_the_status_names_the_app_of_every_runner_and_the_board_that_of_every_request(two: Setup) -> None:
    gate = Gate()
    two.hosts[1].handler = gate
    later = Later()
    for _ in range(2):
        later.ask(two, path="/run/me/speak")
    until(lambda: two.status()["queued"] == 1, within_s=PATIENCE_S, what="one waits")
    told = two.status()
    assert [runner["app"] for runner in told["runners"]] == ["draw", "speak"]
    assert told["apps"] == [
        {"app": "draw", "runners": [0], "ready": 1, "queued": 0, "in_flight": 0},
        {"app": "speak", "runners": [1], "ready": 1, "queued": 1, "in_flight": 1},
    ]

    def shown() -> list[str]:
        row = two.board.router()
        return [queued.app for queued in row.queue] if row else []

    until(lambda: shown() == ["speak"], within_s=PATIENCE_S, what="it stands on the board")
    gate.opened.set()
    later.all()


def test_what_waits_is_shown_in_order_of_arrival_whatever_its_app(two: Setup) -> None:
    gate = Gate()
    for host in two.hosts.values():
        host.handler = gate
    later = Later()
    for n, alias in enumerate(("draw", "speak", "draw", "speak", "draw")):
        later.ask(two, path=f"/run/me/{alias}")
        until(
            lambda n=n: sum(queued(two).values()) + sum(in_flight(two).values()) == n + 1,  # type: ignore[misc]
            within_s=PATIENCE_S,
            what="it has come",
        )

    def shown() -> list[str]:
        row = two.board.router()
        return [waiting.app for waiting in row.queue] if row else []

    until(lambda: len(shown()) == 3, within_s=PATIENCE_S, what="it stands on the board")
    assert shown() == ["draw", "speak", "draw"]
    gate.opened.set()
    later.all()


def read(setup: Setup, path: str, *, expected: int = 200) -> Any:
    reply = ask(setup, "GET", path)
    assert reply.status == expected, reply.body
    return reply.json()


def test_a_request_is_explained_whatever_its_app(two: Setup) -> None:
    for alias in TWO:
        request = ask(two, path=f"/run/me/{alias}").value("x-fal-request-id")
        told = read(two, f"/falctl/explain/{request}")
        assert (told["app"], told["request"]) == (alias, request)
    assert "the last 2 requests" in read(two, "/falctl/explain/00000000-none", expected=404)["detail"]


def test_why_is_asked_of_the_app_that_knows_the_model_or_is_named(two: Setup) -> None:
    two.hosts[1].set_hints("voice")
    ask(two, path="/run/me/speak", headers={"x-fal-runner-hint": "voice"})
    assert read(two, "/falctl/why?model=voice")["app"] == "speak"
    assert read(two, "/falctl/why?model=voice&app=draw")["app"] == "draw"
    unclear = read(two, "/falctl/why?model=nobody-knows", expected=400)
    assert "app=draw|speak" in unclear["detail"]
    assert "there are draw, speak" in read(two, "/falctl/why?model=voice&app=x", expected=404)["detail"]


def test_what_ended_is_told_app_by_app(two: Setup) -> None:
    for alias, count in (("draw", 1), ("speak", 2)):
        for _ in range(count):
            ask(two, path=f"/run/me/{alias}")
        until(partial(has_ended, two, alias, count), within_s=PATIENCE_S, what=f"{count} of {alias} ended")
    assert "app=draw|speak" in read(two, "/falctl/ended?after=0", expected=400)["detail"]


def has_ended(setup: Setup, alias: str, count: int) -> bool:
    table = read(setup, f"/falctl/ended?after=0&app={alias}")
    assert table["app"] == alias
    return len(table["requests"]) == count


def test_a_reload_and_a_drain_are_for_all_apps(two: Setup) -> None:
    gate = Gate()
    for host in two.hosts.values():
        host.handler = gate
    assert two.router is not None
    two.router.send(
        wire.Reload(two.config.model_dump(mode="json") | {"queue": {"max": 1, "max_per_client": 0}})
    )
    until(lambda: "router.reloaded" in log_of(two), within_s=PATIENCE_S, what="reloaded")
    later = Later()
    for alias in TWO:
        for waiting in (0, 1):
            later.ask(two, path=f"/run/me/{alias}")
            until(partial(is_so, two, alias, waiting), within_s=PATIENCE_S, what="it is there")
        assert ask(two, path=f"/run/me/{alias}").status == 429
    two.router.send(wire.Drain(600.0))
    until(lambda: sum(queued(two).values()) == 0, within_s=PATIENCE_S, what="those that wait are refused")
    gate.opened.set()
    assert sorted(reply.status for reply in later.all()) == [200, 200, 503, 503]
    two.router.expect(wire.Drained)


def is_so(setup: Setup, alias: str, waiting: int) -> bool:
    return queued(setup)[alias] == waiting and in_flight(setup)[alias] == 1


def queued(setup: Setup) -> dict[str, int]:
    return {app["app"]: app["queued"] for app in setup.status()["apps"]}


def in_flight(setup: Setup) -> dict[str, int]:
    return {app["app"]: app["in_flight"] for app in setup.status()["apps"]}


def test_a_new_router_knows_what_each_app_has_learnt(two: Setup) -> None:
    for alias in TWO:
        ask(two, path=f"/run/me/{alias}", headers={"x-fal-runner-hint": f"m-{alias}"})
    assert two.router is not None
    two.router.send(wire.Stop())
    until(
        lambda: two.router is not None and two.router.process.poll() == 0, within_s=PATIENCE_S, what="its end"
    )
    table = json.loads(two.home.learnt.read_bytes())["apps"]
    assert {alias: [row[0] for row in table[alias]["demand"]["counts"]] for alias in TWO} == {
        "draw": ["m-draw"],
        "speak": ["m-speak"],
    }
