"""What the router tells of its decisions over HTTP: stories, reasons, and what has ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from falctl.apikeys import hash_key
from falctl.board.rows import QueuedRow
from tests.router.client import Later, ask
from tests.router.fake_host import PATIENCE_S, Gate
from tests.router.harness import ADMIN_TOKEN, Setup, serving, waits
from tests.wait import until

HINT = "x-fal-runner-hint"
KEY = "falctl_a-key-of-this-test"


@pytest.fixture
def one() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


def read(setup: Setup, path: str) -> dict[str, Any]:
    reply = ask(setup, "GET", path)
    assert reply.status == 200, reply.body
    table: dict[str, Any] = reply.json()
    assert table["schema"] == 1
    return table


def ended(setup: Setup, after: int, *, count: int) -> list[dict[str, Any]]:
    """Return what ended after that number, once *count* have: the host tells a moment after its answer."""
    told: list[dict[str, Any]] = []

    def all_ended() -> bool:
        told[:] = [read(setup, f"/falctl/ended?after={after}")]
        return bool(told[0]["count"] == count)

    until(all_ended, within_s=PATIENCE_S, what=f"{count} requests have ended")
    rows: list[dict[str, Any]] = told[0]["requests"]
    return rows


def test_a_request_is_explained_by_its_id_and_by_the_beginning_of_it(one: Setup) -> None:
    one.hosts[0].set_hints("m")
    request = ask(one, headers={HINT: "m"}).value("x-fal-request-id")
    assert request is not None
    ended(one, 0, count=1)
    story = read(one, f"/falctl/explain/{request}")
    assert read(one, f"/falctl/explain/{request[:8]}")["request"] == story["request"] == request
    assert (story["hint"], story["client"], story["state"], story["why"]) == ("m", "127.0.0.1", "ended", None)
    sent, end = story["steps"]
    assert (sent["kind"], sent["runner"], sent["warm"]) == ("dispatched", 0, True)
    assert [c["standing"] for c in sent["candidates"]] == ["warm"]
    assert 0 <= sent["t_s"] <= end["t_s"]
    assert end["kind"] == "ended"


def test_an_unknown_request_is_told_what_is_remembered(one: Setup) -> None:
    ask(one)
    reply = ask(one, "GET", "/falctl/explain/00000000-0000")
    assert reply.status == 404
    assert reply.value("x-fal-error-type") == "not_found"
    detail = reply.json()["detail"]
    assert detail.startswith(
        "nothing is remembered of request 00000000-0000: this router knows the last 1 requests"
    )


def test_a_router_that_starts_anew_remembers_nothing(one: Setup) -> None:
    request = ask(one).value("x-fal-request-id")
    assert one.router is not None
    one.router.kill()
    one.start_router()
    reply = ask(one, "GET", f"/falctl/explain/{request}")
    assert reply.status == 404
    assert "the last 0 requests since it started" in reply.json()["detail"]
    assert read(one, "/falctl/ended?after=0")["epoch"] == 2


def test_why_a_request_waits_is_told_over_http_in_its_story_and_on_the_board(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    one.hosts[0].set_hints("m")
    later = Later()
    later.ask(one, headers={HINT: "m"})
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    later.ask(one, headers={HINT: "m"})
    waits(one, 1)
    later.ask(one)
    waits(one, 2)
    told = read(one, "/falctl/why?model=m")
    assert told["waiting"] == 1
    assert "holds for runner 0, free in about " in told["conclusion"]
    [row] = told["runners"]
    assert row["candidate"]["standing"] == "warm, busy"
    assert [task["hint"] for task in row["executing"]] == ["m"]

    def queue() -> tuple[QueuedRow, ...]:
        router = one.board.router()
        return () if router is None else router.queue

    until(lambda: len(queue()) == 2, within_s=PATIENCE_S, what="both stand on the board")
    assert queue()[0].why.startswith("runner 0 busy, ")
    assert queue()[1].why.startswith("all runners busy, ")
    story = read(one, f"/falctl/explain/{queue()[0].request}")
    assert story["state"] == "waiting"
    assert "holds for runner 0" in story["why"]
    assert read(one, f"/falctl/explain/{queue()[1].request}")["why"] is None, "it wants no model"
    assert read(one, "/falctl/ended")["unfinished"] == 3
    gate.opened.set()
    later.all()


def test_only_the_oldest_models_are_told_why_they_wait(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    later.ask(one)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    for n in range(10):
        later.ask(one, headers={HINT: f"m{n}"})
        waits(one, n + 1)

    def queue() -> list[QueuedRow]:
        router = one.board.router()
        return [] if router is None else sorted(router.queue, key=lambda row: row.arrived_at)

    until(lambda: len(queue()) == 10, within_s=PATIENCE_S, what="all stand on the board")
    assert [bool(row.why) for row in queue()] == [True] * 8 + [False] * 2
    gate.opened.set()
    later.all()


@pytest.mark.parametrize(
    ("path", "shown"), [("a%2Fb", "a/b"), ("..%2F..", "../.."), ("%1B%5B31mred", r"'\x1b[31mred'")]
)
def test_what_is_no_request_is_said_to_be_none_in_letters_that_a_terminal_can_show(
    one: Setup, path: str, shown: str
) -> None:
    reply = ask(one, "GET", f"/falctl/explain/{path}")
    assert reply.status == 404
    assert reply.json()["detail"].startswith(f"nothing is remembered of request {shown}: ")


def test_a_model_of_a_header_that_is_not_ascii_is_found_by_its_name(one: Setup) -> None:
    one.hosts[0].set_hints("模型".encode().decode("latin-1"))

    def is_warm() -> bool:
        return "warm on runner 0" in read(one, "/falctl/why?model=%E6%A8%A1%E5%9E%8B")["conclusion"]

    until(is_warm, within_s=PATIENCE_S, what="the hints are heard of")
    assert "nobody holds it" in read(one, "/falctl/why?model=%ED%A0%80")["conclusion"], (
        "half a surrogate pair"
    )


def test_ended_requests_are_read_from_a_number_on(one: Setup) -> None:
    start = read(one, "/falctl/ended")
    assert (start["count"], start["requests"], start["epoch"]) == (0, [], 1)
    for model in ("a", "b", "c"):
        ask(one, headers={HINT: model})
        ended(one, 0, count="abc".index(model) + 1)
    rows = ended(one, 1, count=3)
    assert [(row["number"], row["hint"]) for row in rows] == [(2, "b"), (3, "c")]
    assert all(row["arrived_at"] > start["at"] for row in rows)


@pytest.mark.parametrize(
    "path", ["/falctl/why", "/falctl/why?model=", "/falctl/ended?after=-1", "/falctl/ended?after=x"]
)
def test_a_question_that_is_none_is_a_400_with_the_fix(plain: Setup, path: str) -> None:
    reply = ask(plain, "GET", path)
    assert reply.status == 400
    assert "/falctl/why?model=NAME" in reply.json()["detail"] or "from 0 up" in reply.json()["detail"]


@pytest.mark.parametrize("path", ["/falctl/explain/x", "/falctl/why?model=m", "/falctl/ended"])
def test_reasons_need_a_key_where_keys_are_asked_for(path: str) -> None:
    with serving(config={"server": {"api_keys": [hash_key(KEY)]}}) as setup:
        assert ask(setup, "GET", path).status == 401
        for headers in ({"authorization": f"Key {KEY}"}, {"x-falctl-token": ADMIN_TOKEN}):
            assert ask(setup, "GET", path, headers=headers).status in (200, 404)


def test_an_answer_with_half_a_surrogate_pair_is_json(one: Setup) -> None:
    body = json.dumps({"model": "\ud800"}).encode()
    request = ask(one, body=body, headers={"content-type": "application/json"}).value("x-fal-request-id")
    assert read(one, f"/falctl/explain/{request}")["hint"] == "\ud800"
