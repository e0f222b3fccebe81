"""The driver alone, and what only its clock brings about."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message, Send

from falctl import wire
from falctl.board.board import Board
from falctl.config import Config
from falctl.core.admission import ByteBudget
from falctl.core.events import Arrived, Dispatch, Refuse, RunnerDown, RunnerUp
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.errors import ClientGoneError
from falctl.home import Home
from falctl.router.dispatch.activity import Activity
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.dispatch.driver import Driver
from falctl.router.edge.body import Intake
from falctl.router.edge.call import Call
from falctl.router.own.ledger import Ledger
from falctl.router.own.steps import Steps
from falctl.router.passing.proxy import Proxy, ProxyRules
from falctl.router.passing.reach import Target
from falctl.router.runners.fleet import FleetLinks
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Seen, answer, wait_on_loop
from tests.router.harness import serving
from tests.wait import until

A, B = RequestId("a"), RequestId("b")
FIRST = RunnerId(0)


def driver() -> Driver:
    config = Config()
    return Driver(routing=config.routing, queue=config.queue, ledger=Ledger(), cwd=Path())


def test_a_decision_is_made_before_submit_returns() -> None:
    async def run() -> None:
        made = driver()
        made.handle(RunnerUp(FIRST, Epoch(1), 1, (), None))
        decision = made.submit(Arrived(A, None, "client"))
        assert decision.done()
        assert isinstance(decision.result(), Dispatch)

    asyncio.run(run())


def test_a_cancelled_request_is_decided_as_nothing_and_takes_no_slot() -> None:
    async def run() -> None:
        made = driver()
        made.handle(RunnerDown(FIRST, returns=True))
        decision = made.submit(Arrived(A, None, "client"))
        made.cancel(A)
        assert await decision is None
        made.handle(RunnerUp(FIRST, Epoch(1), 1, (), None))
        assert isinstance(await made.submit(Arrived(B, None, "client")), Dispatch)

    asyncio.run(run())


def test_a_request_bounced_by_a_runner_that_is_gone_waits_all_the_same() -> None:
    async def run() -> None:
        made = driver()
        made.handle(RunnerUp(FIRST, Epoch(1), 1, (), None))
        action = await made.submit(Arrived(A, None, "client"))
        assert isinstance(action, Dispatch)
        made.handle(RunnerDown(FIRST, returns=True))
        decision = made.bounce(action, Arrived(A, None, "client"))
        assert not decision.done()
        made.handle(RunnerUp(FIRST, Epoch(2), 1, (), None))
        again = await decision
        assert isinstance(again, Dispatch)
        assert again.epoch == 2

    asyncio.run(run())


def test_a_client_that_goes_between_dispatch_and_sending_leaves_no_request_behind() -> None:
    async def run() -> None:
        made = driver()
        made.handle(RunnerDown(FIRST, returns=True))
        connection = SimpleNamespace(gone=False, on_gone=lambda: None, has_input=True)
        fleet = SimpleNamespace(refresh=lambda: None)  # whoever asks it for a link fails
        rules = ProxyRules(hint_from="", hide=frozenset())
        intake = Intake(ByteBudget(1000), 1000, 1.0, lambda: 1.0)
        proxy = Proxy(
            cast("FleetLinks", fleet), intake=intake, ledger=Ledger(), rules=rules, activity=Activity()
        )
        call = Call(a_scope(connection), an_empty_body, nobody_reads)
        serving_it = asyncio.ensure_future(
            proxy.serve(call, Target(LocalApp("", frozenset({FIRST}), made), b"/"))
        )
        await asyncio.sleep(0)
        assert len(made.scheduler.queue) == 1
        # A slot turns free and the client goes, both before the request's task runs again.
        made.handle(RunnerUp(FIRST, Epoch(1), 1, (), None))
        connection.gone = True
        connection.on_gone()
        with pytest.raises(ClientGoneError):
            await serving_it
        assert isinstance(made.submit(Arrived(B, None, "client")).result(), Dispatch), (
            "the slot is free again"
        )

    asyncio.run(run())


def a_scope(connection: object) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
        "client": None,
        "state": {"connection": connection},
    }


async def an_empty_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def nobody_reads(_: Message) -> None:
    raise AssertionError


def test_draining_refuses_what_waits() -> None:
    async def run() -> None:
        made = driver()
        made.handle(RunnerDown(FIRST, returns=True))
        decision = made.submit(Arrived(A, None, "client"))
        made.drain()
        action = await decision
        assert isinstance(action, Refuse)
        assert action.code == "draining"

    asyncio.run(run())


def test_a_hold_ends_in_time_although_nothing_happens() -> None:
    release = threading.Event()

    async def block(seen: Seen, send: Send) -> None:

        if seen.raw_path == b"/block":
            await wait_on_loop(release)
        await answer(send)

    with serving(runners=2, config={"routing": {"policy": "affinity", "hold": 0.5}}, handler=block) as setup:
        setup.hosts[0].set_hints("m")
        with Raw(setup, request_bytes("/block", b"X-Fal-Runner-Hint: m")):
            until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
            reply = ask(setup, headers={"x-fal-runner-hint": "m"})
            assert reply.value("x-falctl-runner") == "1"
            queue = float((reply.value("server-timing") or "").partition("queue;dur=")[2].partition(",")[0])
            assert 450 < queue < 3000
            release.set()


def test_the_last_picture_of_a_request_goes_with_its_runner() -> None:
    async def run(home: Home, board: Board) -> None:
        fleet = FleetLinks(board, home, Apps([LocalApp("", frozenset({FIRST}), driver())]), Ledger())
        steps = Steps(fleet, news=lambda _: None)
        fleet.learn(FIRST, 1, "ready")
        link = fleet.find(FIRST, Epoch(1))
        assert link is not None
        link._held[A] = None
        link._strangers.add(B)
        for request in (A, B):
            fleet.stepped(wire.Stepped(1, request, 1, 20, "a picture"))
            assert steps.preview(request) is not None
        fleet.learn(FIRST, 1, "backoff")
        assert (steps.preview(A), steps.preview(B)) == (None, None)
        await fleet.close()

    with tempfile.TemporaryDirectory(prefix="f", dir="/tmp") as folder:
        home = Home(Path(folder))
        home.create()
        board = Board.create(home.board, runners=1, gpus=1)
        asyncio.run(run(home, board))
        board.close()
