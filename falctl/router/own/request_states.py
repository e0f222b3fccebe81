"""Where a request is now, queued or direct: who stands before it, what loads for it, which step it does, how it ended."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from falctl.board.rows import ModelRow, RunnerRow
from falctl.clock import monotonic_s
from falctl.core.decisions import RequestStory
from falctl.core.fleet import Runner, Running
from falctl.core.jobs import ended_state
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RequestId
from falctl.errors import NotFoundError
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.jobs.keeper import Keeper
from falctl.router.own.ledger import Ledger
from falctl.router.runners.fleet import FleetLinks

Table = dict[str, Any]

_STATUS_WITHIN_S: Final = 2.0
"""A slot may be told free before the answer's head has come by another socket."""
_LOOK_S: Final = 0.005
_CANCELLED: Final = 499
_WITHOUT_STATUS: Final = {"refused": "refused", "cancelled": "cancelled", "lost": "failed"}


class RequestStates:
    """Reads what others own."""

    def __init__(self, apps: Apps, keeper: Keeper, fleet: FleetLinks, ledger: Ledger) -> None:
        self._apps = apps
        self._keeper = keeper
        self._fleet = fleet
        self._ledger = ledger

    def live(self, request: RequestId) -> Table | None:
        """Return its state if it waits or runs: ``queued``, ``loading`` or ``running``; None: it does not."""
        self._fleet.refresh()
        for app in self._apps:
            scheduler = app.driver.scheduler
            if (waiting := scheduler.queue.get(request)) is not None:
                return self._waiting(app, waiting)
            for view in scheduler.fleet.runners.values():
                if (slot := view.in_use.get(request)) is not None:
                    return self._running(view, request, slot)
        if self._keeper.find(request) is None:
            return None
        return {"state": "queued", "position": self._keeper.position(request) or 0}

    async def now(self, request: RequestId) -> Table:
        """
        Return its state, also one that it has ended with: ``ended``.

        Raises:
            NotFoundError: nobody knows it, yet or any more.
        """
        if (table := self.live(request)) is not None:
            return table
        if (saved := await self._keeper.store.find(request)) is not None:
            if saved.ending is None:
                return {"state": "queued", "position": 0}
            outcome = saved.ending.outcome
            return {"state": "ended", "outcome": ended_state(outcome), "status": outcome.status}
        for app in self._apps:
            if (told := app.driver.scheduler.decisions.explain(request)) is not None:
                return await self._ended(told.story)
        msg = f"no request {request[:64]!a}; a direct one is remembered until 4,096 others have come"
        raise NotFoundError(msg)

    def _waiting(self, app: LocalApp, waiting: Waiting) -> Table:
        position = self._keeper.position(waiting.request)
        if position is None:
            queue = app.driver.scheduler.queue
            position = next(n for n, other in enumerate(queue) if other.request == waiting.request)
        for view in app.driver.scheduler.fleet.runners.values():
            if waiting.hint is not None and waiting.hint in view.loading:
                model = _model(self._fleet.row(view.runner), waiting.hint)
                return _loading(waiting.hint, view, model) | {"position": position}
        return {"state": "queued", "position": position}

    def _running(self, view: Runner, request: RequestId, slot: Running) -> Table:
        row = self._fleet.row(view.runner)
        executing = () if row is None else row.executing
        step, steps = next(((e.step, e.steps) for e in executing if e.request == request), (0, 0))
        if not steps and slot.hint is not None:
            model = _model(row, slot.hint)
            if model is not None and model.state == "loading":
                return _loading(slot.hint, view, model)
        if not steps:
            return {"state": "running", "runner": view.runner, "step": None, "steps": None}
        return {"state": "running", "runner": view.runner, "step": step, "steps": steps}

    async def _ended(self, story: RequestStory) -> Table:
        last = story.steps[-1].kind if story.steps else "lost"
        if (outcome := _WITHOUT_STATUS.get(last)) is not None:
            return {"state": "ended", "outcome": outcome, "status": None}
        status = await self._status(story)
        return {"state": "ended", "outcome": None if status is None else _outcome(status), "status": status}

    async def _status(self, story: RequestStory) -> int | None:
        give_up_at = story.steps[-1].at + _STATUS_WITHIN_S
        while monotonic_s() < give_up_at:  # a websocket has none at all
            if (status := self._ledger.status(story.request)) is not None:
                return status
            await asyncio.sleep(_LOOK_S)
        return self._ledger.status(story.request)


def _model(row: RunnerRow | None, hint: Hint) -> ModelRow | None:
    return next((m for m in row.models if m.name == hint), None) if row is not None else None


def _loading(hint: Hint, view: Runner, model: ModelRow | None) -> Table:
    fraction = None if model is None or model.fraction is None else round(model.fraction, 2)
    return {"state": "loading", "model": hint, "runner": view.runner, "fraction": fraction}


def _outcome(status: int) -> str:
    if status == _CANCELLED:
        return "cancelled"
    return "completed" if status < 400 else "failed"
