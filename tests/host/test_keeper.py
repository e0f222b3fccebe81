"""A slot is given back whatever interrupts its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from falctl import App
from falctl.board.board import Board
from falctl.config import Config
from falctl.core.types import Hint, RequestId
from falctl.host.app_threads import AppThreads
from falctl.host.head import RequestHead
from falctl.host.hint_source import HintSource
from falctl.host.keeper import Keeper
from falctl.host.report import Report
from falctl.host.ticket import Slots
from falctl.wire import HostSpec


class Hinting(App):
    def provide_hints(self) -> Iterable[str]:
        return ["a"]


HEAD = RequestHead(RequestId("r"), Hint("a"), [])


def keeper_on(board: Board, slots: Slots) -> Keeper:
    spec = HostSpec(0, 1, "a:A", "/", "/s", [], [], "", "/f", "u", "/d", Config().model_dump(mode="json"))
    hints = HintSource(Hinting())
    report = Report(board, spec, slots=slots, hints=hints)
    return Keeper(slots=slots, hints=hints, report=report, threads=AppThreads(1))


def test_a_cancellation_that_arrives_while_a_request_ends_does_not_keep_its_slot(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", runners=1, gpus=1)

    async def scene() -> None:
        slots = Slots(1)
        keeper = keeper_on(board, slots)

        async def request() -> None:
            ticket = keeper.admit(HEAD)
            assert ticket is not None
            assert keeper.admit(HEAD) is None
            ticket.task.cancel()  # delivered at the next await, which is inside `end`
            await keeper.end(ticket)

        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(request())
        assert slots.free
        row = board.runner(0)
        assert row is not None
        assert (row.executing, row.served) == ((), 1)

    asyncio.run(scene())
    board.close()


def test_what_is_written_natively_is_taken_before_a_slot_changes_hands(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", runners=1, gpus=1)

    async def scene() -> None:
        slots = Slots(1)
        keeper = keeper_on(board, slots)
        holders: list[str | None] = []
        keeper.report.logbook.drain = lambda: holders.append(slots.sole.request if slots.sole else None)
        ticket = keeper.admit(HEAD)
        assert ticket is not None
        await keeper.end(ticket)
        assert holders == [None, "r"], "what came before it is nobody's, what came by its end is its own"

    asyncio.run(scene())
    board.close()


def test_a_request_that_has_begun_to_end_is_not_cancelled_any_more(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", runners=1, gpus=1)

    async def scene() -> None:
        slots = Slots(1)
        keeper = keeper_on(board, slots)
        ticket = keeper.admit(HEAD)
        assert ticket is not None
        ending = asyncio.ensure_future(keeper.end(ticket))
        await asyncio.sleep(0)
        ticket.cancel()
        ticket.leave()
        await ending
        await asyncio.sleep(0)
        assert slots.free

    asyncio.run(scene())
    board.close()


def test_a_runner_whose_card_broke_takes_nothing_more(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", runners=1, gpus=1)

    async def scene() -> None:
        slots = Slots(1)
        keeper = keeper_on(board, slots)
        ticket = keeper.admit(HEAD)
        assert ticket is not None
        ticket.broke_card = True
        await keeper.end(ticket)
        assert keeper.admit(HEAD) is None

    asyncio.run(scene())
    board.close()


def test_ending_twice_is_ending_once(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", runners=1, gpus=1)

    async def scene() -> None:
        slots = Slots(1)
        keeper = keeper_on(board, slots)
        ticket = keeper.admit(HEAD)
        assert ticket is not None
        await keeper.end(ticket)
        await keeper.end(ticket)
        assert slots.served == 1

    asyncio.run(scene())
    board.close()
