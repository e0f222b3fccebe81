"""The router's row on the board: at most four times a second, at least once. Its beat says that the loop runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Any, Final

from falctl.board.board import Board
from falctl.board.rows import QueuedRow, RouterRow
from falctl.clock import monotonic_s
from falctl.core.fleet import Runner
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RunnerId
from falctl.core.why import brief
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.edge.body import Intake
from falctl.router.own.ledger import Ledger
from falctl.router.runners.fleet import FleetLinks

PERIOD_S: Final = 0.25
BEAT_S: Final = 1.0
QUEUE_SHOWN_MAX: Final = 256
REASONS_MAX: Final = 8
"""Models for which it is told why their requests wait: those that are waited for longest."""


class Publisher:
    """Makes and writes the row. ``draining`` is set by who drains."""

    def __init__(self, board: Board, apps: Apps, *, intake: Intake, ledger: Ledger, epoch: int) -> None:
        self._board = board
        self._apps = apps
        self._intake = intake
        self._ledger = ledger
        self._epoch = epoch
        self._beat_at = 0.0
        self.draining = False

    async def publish_for_ever(self) -> None:
        """Write the row whenever something has changed, and as a sign of life."""
        while True:
            if self._ledger.changed or monotonic_s() - self._beat_at >= BEAT_S:
                self.publish()
            await asyncio.sleep(PERIOD_S)

    def publish(self) -> None:
        """Write the row now."""
        self._ledger.changed = False
        row = self.row()
        self._beat_at = row.beat_at
        self._board.put_router(row)

    def row(self) -> RouterRow:
        """Return what the router knows, as it is written."""
        ledger = self._ledger
        p50_s, p95_s = ledger.quantiles()
        return RouterRow(
            pid=os.getpid(),
            epoch=self._epoch,
            beat_at=monotonic_s(),
            started_at=ledger.started_at,
            draining=self.draining,
            served=ledger.served,
            hits=ledger.hits,
            misses=ledger.misses,
            refused=ledger.refused,
            webhooks_failing=ledger.webhooks_failing,
            queued=sum(len(app.driver.scheduler.queue) for app in self._apps),
            queued_bytes=self._intake.budget.used_bytes,
            in_flight=tuple(self._in_flight(RunnerId(runner)) for runner in range(self._board.runners)),
            loading=tuple(self._loading(RunnerId(runner)) for runner in range(self._board.runners)),
            rate_rps=ledger.rate_rps,
            p50_s=p50_s,
            p95_s=p95_s,
            queue=self._queued(),
            events=tuple(ledger.events),
        )

    def report(self, fleet: FleetLinks) -> dict[str, Any]:
        """Return the same for ``GET /falctl/status``, with what is known of the runners, without the tail of events."""
        row = self.row()
        counts = ("served", "hits", "misses", "refused", "queued", "queued_bytes", "webhooks_failing")
        rates = ("rate_rps", "p50_s", "p95_s")
        told = {name: getattr(row, name) for name in ("pid", "epoch", "draining", *counts, *rates)}
        told["runners"] = [
            self._tell_runner(runner, *state) for runner, state in sorted(fleet.states().items())
        ]
        if self._apps.several:
            told["apps"] = [self._tell_app(app, fleet) for app in self._apps]
        elif name := self._apps.bare().name:
            told["app"] = name
        return told

    def _tell_runner(self, runner: RunnerId, epoch: int, state: str) -> dict[str, Any]:
        view = self._view(runner)
        told = {
            "runner": runner,
            "epoch": epoch,
            "state": state,
            "slots": view.slots if view else 0,
            "in_flight": self._in_flight(runner),
            "hints": None if view is None or view.hints is None else sorted(view.hints),
        }
        return told | ({"app": self._apps.of(runner).alias} if self._apps.several else {})

    def _tell_app(self, app: LocalApp, fleet: FleetLinks) -> dict[str, Any]:
        scheduler = app.driver.scheduler
        return {
            "app": app.alias,
            "runners": sorted(app.runners),
            "ready": fleet.up_count(app),
            "queued": len(scheduler.queue),
            "in_flight": scheduler.in_flight,
        }

    def _queued(self) -> tuple[QueuedRow, ...]:
        """Return the first of all that wait, whatever their app."""
        now = monotonic_s()
        reasons: dict[tuple[str, Hint | None], str] = {}
        rows = []
        for waiting, app in islice(self._waiting(), QUEUE_SHOWN_MAX):
            key = (app.alias, waiting.hint)
            if key not in reasons and len(reasons) < REASONS_MAX:
                reasons[key] = brief(app.driver.scheduler.state, waiting.hint, now=now)
            why = reasons.get(key, "")
            rows.append(
                QueuedRow(waiting.request, waiting.hint, waiting.client, waiting.arrived_at, why, app.alias)
            )
        return tuple(rows)

    def _waiting(self) -> Iterator[tuple[Waiting, LocalApp]]:
        queues = (((waiting, app) for waiting in app.driver.scheduler.queue) for app in self._apps)
        return merge(*queues, key=lambda entry: entry[0].arrived_at)

    def _view(self, runner: RunnerId) -> Runner | None:
        return self._apps.of(runner).driver.scheduler.fleet.runners.get(runner)

    def _in_flight(self, runner: RunnerId) -> int:
        view = self._view(runner)
        return len(view.in_use) if view else 0

    def _loading(self, runner: RunnerId) -> int:
        view = self._view(runner)
        return len(view.loading) if view else 0
