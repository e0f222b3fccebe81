"""How far a request is, pushed to who asks: queued, loading, each step, its picture, its end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.types import Send

from falctl import wire
from falctl.board.rows import Executing, ModelRow, RunnerRow
from falctl.core.types import Epoch, Hint, RequestId
from falctl.router.own.ledger import Ledger
from falctl.router.own.steps import PREVIEWS_MAX
from tests.router.client import Later, Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, FakeHost, Gate, Seen, answer, wait_on_loop
from tests.router.harness import ADMIN_TOKEN, Setup, idle, serving, waits
from tests.router.queue_calls import saying, submit
from tests.router.test_queue_stream import Stream
from tests.wait import until

PICTURE = "/9j/4AAQ"
NUMBERS = itertools.count()


@pytest.fixture
def one() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


class Follow(Stream):
    """One client that reads the events of a request."""

    def __init__(self, setup: Setup, request: str, query: str = "") -> None:
        super().__init__(setup, request, query, path=f"/falctl/requests/{request}/events")

    def until(self, what: str, told: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return until(
            lambda: next((event for event in self.events if told(event)), {}), within_s=PATIENCE_S, what=what
        )

    def state(self, state: str) -> dict[str, Any]:
        return self.until(state, lambda event: event["state"] == state)

    def step(self, step: int) -> dict[str, Any]:
        return self.until(f"step {step}", lambda event: event.get("step") == step)


def new_name() -> str:
    return f"request-{next(NUMBERS)}"


def direct(setup: Setup, later: Later, *headers: tuple[str, str]) -> str:
    """Send a direct request that has a name of its own; return that."""
    name = new_name()
    later.ask(setup, headers={"x-falctl-request-id": name, **dict(headers)})
    return name


def steps(host: FakeHost, request: str, step: int, *, preview: str = "", models: Any = ()) -> None:
    """Do what a host does: the board first, then the event."""
    executing = (Executing(RequestId(request), None, 0.0, step, 20),)
    row = RunnerRow(Epoch(host.epoch), host.slots, (), executing=executing, models=models)

    def tell() -> None:
        host._board.put_runner(host.runner, row)
        host._emit(wire.Stepped(host.epoch, request, step, 20, preview))

    host.call(tell)


def test_a_direct_request_is_followed_from_the_queue_to_its_end(one: Setup) -> None:
    gate, host = Gate(), one.hosts[0]
    host.handler = gate
    later = Later()
    first, second = direct(one, later), ""
    until(lambda: host.executing == [first], within_s=PATIENCE_S, what="it runs")
    second = direct(one, later)
    third = direct(one, later)
    waits(one, 2)
    behind = [row["request"] for row in ask(one, "GET", "/falctl/jobs").json()["jobs"]].index(third) > 1
    follow, last = Follow(one, first), Follow(one, third if behind else second)
    assert follow.state("running") == {
        "request_id": first, "state": "running", "runner": 0, "step": None, "steps": None,
    }  # fmt: skip
    assert follow.status == 200
    assert follow.headers["content-type"].startswith("text/event-stream")
    assert last.state("queued")["position"] == 1
    for step in (1, 7):
        steps(host, first, step)
        assert follow.step(step)["steps"] == 20
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200] * 3
    assert follow.end()[-1] == {
        "request_id": first, "state": "ended", "outcome": "completed", "status": 200,
    }  # fmt: skip
    assert [event["state"] for event in last.end()][-1] == "ended"
    idle(one)


def test_a_queued_job_is_followed_too(one: Setup) -> None:
    gate, host = Gate(), one.hosts[0]
    host.handler = gate
    running = submit(one)["request_id"]
    until(lambda: host.executing, within_s=PATIENCE_S, what="it runs")
    waiting = submit(one)["request_id"]
    follow = Follow(one, waiting)
    assert follow.state("queued")["position"] == 0
    gate.opened.set()
    events = follow.end()
    assert events[-1]["outcome"] == "completed"
    assert Follow(one, running).end() == [
        {"request_id": running, "state": "ended", "outcome": "completed", "status": 200}
    ]
    idle(one)


def test_a_picture_is_told_once_and_the_newest_alone(one: Setup) -> None:
    gate, host = Gate(), one.hosts[0]
    host.handler = gate
    later = Later()
    name = direct(one, later)
    until(lambda: host.executing, within_s=PATIENCE_S, what="it runs")
    with_pictures, without = Follow(one, name, "?preview=1"), Follow(one, name)
    for follow in (with_pictures, without):
        follow.state("running")
    steps(host, name, 1, preview=PICTURE + "old")
    steps(host, name, 2, preview=PICTURE)
    steps(host, name, 3)
    with_pictures.step(3)
    without.step(3)
    shown = [event["preview"] for event in with_pictures.events if "preview" in event]
    assert shown[-1] == f"data:image/jpeg;base64,{PICTURE}"
    assert len(shown) == len(set(shown)) <= 2
    late = Follow(one, name, "?preview=1")
    assert late.state("running")["preview"] == shown[-1]
    gate.opened.set()
    for follow in (with_pictures, without, late):
        assert "preview" not in follow.end()[-1]
    assert not [event for event in without.events if "preview" in event]
    later.all()
    assert "preview" not in Follow(one, name, "?preview=1").end()[-1], "it is not kept"


def test_who_wants_pictures_has_the_runner_make_them(one: Setup) -> None:
    gate, host = Gate(), one.hosts[0]
    host.handler = gate
    later = Later()
    name = direct(one, later)
    follow = Follow(one, name, "?preview=1")
    follow.state("running")
    until(lambda: host.previewed == [name], within_s=PATIENCE_S, what="its runner is asked")
    steps(host, name, 1)
    follow.step(1)
    assert host.previewed == [name], "once"
    gate.opened.set()
    later.all()
    follow.end()


def test_a_request_s_own_header_reaches_its_runner_queued_or_direct(plain: Setup) -> None:
    for path in ("/", "/queue/me/app"):
        ask(plain, path=path, body=b"{}", headers={"x-falctl-preview": "1"})
    until(lambda: len(plain.hosts[0].seen) == 2, within_s=PATIENCE_S, what="both have run")
    assert [seen.values("x-falctl-preview") for seen in plain.hosts[0].seen] == [[b"1"]] * 2
    idle(plain)


def test_a_load_is_told_with_how_much_of_it_is_there(one: Setup) -> None:
    gate, host = Gate(), one.hosts[0]
    host.handler = gate
    later = Later()
    name = direct(one, later, ("x-fal-runner-hint", "m"))
    until(lambda: host.executing, within_s=PATIENCE_S, what="it runs")
    follow = Follow(one, name)

    def put(fraction: float | None) -> None:
        model = ModelRow("m", "loading", 0.0, fraction=fraction)
        executing = (Executing(RequestId(name), Hint("m"), 0.0),)
        row = RunnerRow(Epoch(1), 1, (), executing=executing, models=(model,))
        host.call(lambda: host._board.put_runner(0, row))

    for there, fraction in ((0.25, 0.25), (0.756, 0.76), (None, None)):
        put(there)
        told = follow.until(f"{fraction}", lambda e: e.get("fraction", "") == fraction)  # noqa: B023
        assert told == {
            "request_id": name, "state": "loading", "model": "m", "runner": 0, "fraction": fraction,
        }  # fmt: skip
    steps(host, name, 1)
    follow.step(1)
    gate.opened.set()
    later.all()
    follow.end()


def test_a_load_job_for_one_that_waits_is_told() -> None:
    with serving(hints=("other",), declares={"loads": True, "models_max": 1}) as setup:
        host = setup.hosts[0]
        later = Later()
        name = direct(setup, later, ("x-fal-runner-hint", "m"))
        told = Follow(setup, name).state("loading")
        assert (told["model"], told["runner"], told["position"]) == ("m", 0, 0)
        host.set_hints("m")
        host.emit(wire.LoadEnded(1, "m", ok=True, load_s=0.1))
        assert [reply.status for reply in later.all()] == [200]


@pytest.mark.parametrize(("status", "outcome"), [(500, "failed"), (499, "cancelled")])
def test_how_a_direct_request_ended_is_told(one: Setup, status: int, outcome: str) -> None:
    one.hosts[0].handler = saying(status)
    later = Later()
    name = direct(one, later)
    later.all()
    (event,) = Follow(one, name).end()
    assert (event["state"], event["outcome"], event["status"]) == ("ended", outcome, status)


def test_an_end_that_is_heard_before_the_answer_waits_for_its_status(one: Setup) -> None:
    """They come by different sockets."""
    gate, host = Gate(), one.hosts[0]

    async def ends_early(seen: Seen, send: Send) -> None:
        await wait_on_loop(gate.opened)
        host.release(seen.request)
        await asyncio.sleep(0.05)
        await answer(send, status=422)

    host.handler = ends_early
    later = Later()
    name = direct(one, later)
    follow = Follow(one, name)
    follow.state("running")
    gate.opened.set()
    assert follow.end()[-1]["status"] == 422
    later.all()


def test_one_whose_client_left_before_it_began_is_told_as_cancelled(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    direct(one, later)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="it runs")
    name = new_name()
    with Raw(one, request_bytes("/", b"X-Falctl-Request-Id: " + name.encode())):
        follow = Follow(one, name)
        follow.state("queued")
    event = follow.end()[-1]
    assert (event["state"], event["outcome"], event["status"]) == ("ended", "cancelled", None)
    gate.opened.set()
    later.all()


def test_who_asks_before_the_request_has_come_waits_for_it(one: Setup) -> None:
    later, name = Later(), new_name()
    follow = Follow(one, name)
    until(lambda: one.status()["watching"] == 1, within_s=PATIENCE_S, what="it watches")
    later.ask(one, headers={"x-falctl-request-id": name})
    assert [reply.status for reply in later.all()] == [200]
    assert follow.end()[-1]["state"] == "ended"
    until(lambda: one.status()["watching"] == 0, within_s=PATIENCE_S, what="nobody watches")


def test_a_request_that_does_not_come_is_404(plain: Setup) -> None:
    reply = ask(plain, "GET", "/falctl/requests/nobody-knows-it/events")
    assert (reply.status, reply.json()["error_type"]) == (404, "not_found")


def test_what_is_asked_wrongly_is_refused(plain: Setup) -> None:
    path = "/falctl/requests/some-request"
    admin = {"x-falctl-token": ADMIN_TOKEN}
    assert ask(plain, "GET", f"{path}/events?preview=yes").status == 400
    assert ask(plain, "GET", path).status == 404
    reply = ask(plain, "POST", f"{path}/events", headers=admin)
    assert (reply.status, reply.value("allow")) == (405, "GET, HEAD")


def test_a_client_that_leaves_is_watched_for_no_more(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    name = direct(one, later)
    path = f"/falctl/requests/{name}/events"
    with Raw(one, request_bytes(path, method="GET")) as raw:
        raw.read_until(b"\n\n\r\n")
        assert one.status()["watching"] == 1
    until(lambda: one.status()["watching"] == 0, within_s=PATIENCE_S, what="nobody watches")
    gate.opened.set()
    later.all()


def test_pictures_of_requests_that_never_end_are_bounded(one: Setup) -> None:
    """As of those whose runner was killed, which tells of no end."""
    gate, host = Gate(), one.hosts[0]
    host.handler = gate
    later = Later()
    name = direct(one, later)
    until(lambda: host.executing, within_s=PATIENCE_S, what="it runs")
    steps(host, name, 1, preview=PICTURE)
    assert shown_now(one, name)["preview"].endswith(PICTURE)
    for n in range(PREVIEWS_MAX):
        host.emit(wire.Stepped(1, f"gone-{n}", 1, 2, PICTURE))
    steps(host, name, 2)
    until(lambda: "preview" not in shown_now(one, name), within_s=PATIENCE_S, what="the oldest left")
    gate.opened.set()
    later.all()


def test_what_direct_requests_were_answered_with_is_remembered_of_the_last_ones_alone() -> None:
    ledger = Ledger()
    for n in range(5000):
        ledger.answer(RequestId(f"r{n}"), 200)
    assert (ledger.status(RequestId("r0")), ledger.status(RequestId("r4999"))) == (None, 200)
    assert sum(ledger.status(RequestId(f"r{n}")) is not None for n in range(5000)) == 4096


def shown_now(setup: Setup, name: str) -> dict[str, Any]:
    return Follow(setup, name, "?preview=1").state("running")


def test_a_stream_ends_with_the_router(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    follow = Follow(one, direct(one, later))
    follow.state("running")
    assert one.router is not None
    one.router.send(wire.Stop())
    assert [event["state"] for event in follow.end()] == ["running"]
    gate.opened.set()
    later.all()
