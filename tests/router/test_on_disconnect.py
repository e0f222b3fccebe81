"""A client may leave, and its request run to its end all the same; and it may choose its request's id."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from starlette.types import Send

from tests.router.client import Later, Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer, wait_on_loop
from tests.router.harness import ADMIN_TOKEN, Setup, idle, serving, waits
from tests.router.queue_calls import result, submit
from tests.wait import until

FINISH = b"X-Falctl-On-Disconnect: finish"
CHOSEN = "chosen-by-its-client"
ADMIN = {"x-falctl-token": ADMIN_TOKEN}


@pytest.fixture
def one() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


def paths(setup: Setup) -> list[bytes]:
    return [seen.raw_path for seen in setup.hosts[0].seen]


def executing(setup: Setup) -> None:
    until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")


def test_a_request_that_runs_goes_on_without_its_client_and_keeps_its_slot(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    with Raw(one, request_bytes("/left", FINISH)):
        executing(one)
    later = Later()
    later.ask(one, path="/next")
    waits(one, 1)  # asked for by a connection that came after the other had gone
    assert one.hosts[0].cancels_asked == 0
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200]
    idle(one)
    assert (one.hosts[0].cancels_asked, paths(one)) == (0, [b"/left", b"/next"])
    assert one.status()["served"] == 2


def test_a_request_that_waits_waits_on_without_its_client(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    later.ask(one, path="/first")
    executing(one)
    with Raw(one, request_bytes("/second", FINISH)), Raw(one, request_bytes("/dropped")):
        waits(one, 2)
    waits(one, 1)
    gate.opened.set()
    later.all()
    until(lambda: len(paths(one)) == 2, within_s=PATIENCE_S, what="the second runs, too")
    idle(one)
    assert paths(one) == [b"/first", b"/second"]


def test_one_that_is_bounced_waits_again_without_its_client(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    one.hosts[0].door = threading.Event()
    with Raw(one, request_bytes("/left", FINISH)):
        until(lambda: one.hosts[0].at_door, within_s=PATIENCE_S, what="it stands at the door")
    one.hosts[0].bounces = 1
    one.hosts[0].door.set()
    gate.opened.set()
    until(lambda: paths(one) == [b"/left"], within_s=4 * PATIENCE_S, what="it runs")
    idle(one)


def test_an_answer_that_nobody_reads_is_read_to_its_end(one: Setup) -> None:
    left = threading.Event()
    ended = threading.Event()

    async def long(_: Seen, send: Send) -> None:
        await wait_on_loop(left)
        await answer(send, b"x" * (4 << 20))
        ended.set()

    one.hosts[0].handler = long
    with Raw(one, request_bytes("/long", FINISH)):
        executing(one)
    waits(one, 0)
    left.set()
    assert ended.wait(PATIENCE_S)
    idle(one)


def test_a_cancel_by_hand_ends_it_all_the_same(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    with Raw(one, request_bytes("/left", FINISH, b"X-Falctl-Request-Id: " + CHOSEN.encode())):
        executing(one)
    assert ask(one, path=f"/falctl/jobs/{CHOSEN}/cancel", headers=ADMIN).status == 202
    until(lambda: one.hosts[0].cancelled == [CHOSEN], within_s=PATIENCE_S, what="cancelled")
    gate.opened.set()
    idle(one)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-falctl-on-disconnect", "maybe"),
        ("x-falctl-preview", "yes"),
        ("x-falctl-request-id", "short"),
        ("x-falctl-request-id", "x" * 65),
        ("x-falctl-request-id", "with/a/slash"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(plain: Setup, header: str, value: str) -> None:
    reply = ask(plain, headers={header: value})
    assert reply.status == 400
    assert reply.json()["detail"].lower().startswith(f"{header}: {value!r} is n")
    assert plain.hosts[0].seen == []


def test_they_may_be_what_they_are_without(plain: Setup) -> None:
    assert ask(plain, headers={"x-falctl-on-disconnect": "Cancel", "x-falctl-preview": "0"}).status == 200


def test_an_id_that_a_client_chooses_is_the_request_s(plain: Setup) -> None:
    reply = ask(plain, path="/run/me/app/x", headers={"x-falctl-request-id": "a-name-of-mine"})
    assert reply.value("x-fal-request-id") == "a-name-of-mine"
    (seen,) = plain.hosts[0].seen
    assert seen.request == "a-name-of-mine"
    assert not [name for name, _ in seen.headers if name.startswith(b"x-falctl-request")]


def test_no_two_requests_have_the_same(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    headers = {"x-falctl-request-id": CHOSEN}
    later = Later()
    later.ask(one, headers=headers)
    executing(one)

    def refused(name: str) -> None:
        reply = ask(one, headers={"x-falctl-request-id": name})
        assert (reply.status, reply.json()["error_type"]) == (409, "conflict")
        assert f"another request is called {name}" in reply.json()["detail"]

    refused(CHOSEN)
    job = submit(one)["request_id"]
    refused(job)
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200]
    idle(one)
    refused(CHOSEN)  # it is remembered: `falctl explain` would not know which is meant
    result(one, job)
    assert one.router is not None
    one.router.kill()
    one.start_router()
    refused(job)  # jobs are known for longer


def test_an_id_is_taken_by_what_a_former_router_has_sent() -> None:
    with serving(slots=2, executing=[CHOSEN]) as setup:
        assert ask(setup, headers={"x-falctl-request-id": CHOSEN}).status == 409
        assert ask(setup).status == 200


def test_an_id_is_taken_before_its_body_has_come(one: Setup) -> None:
    name = b"X-Falctl-Request-Id: " + CHOSEN.encode()
    expects = b"Expect: 100-continue"
    with Raw(one, request_bytes("/", name, expects, b"Content-Length: 2")) as raw:
        raw.read_until(b"100 Continue\r\n\r\n")
        assert ask(one, headers={"x-falctl-request-id": CHOSEN}).status == 409
        raw.send(b"{}")
        raw.read_until(b"ok")
    assert len(one.hosts[0].seen) == 1
