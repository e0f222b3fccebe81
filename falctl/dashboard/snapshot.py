"""
The fleet at one instant, as plain values: all that the view draws and all that ``--json`` prints.

`take` is the only thing here that reads the board. Field names are those of docs/status-schema.json; instants
have become ages, relative to the moment of the snapshot, because nobody outside this machine knows our clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from falctl.board.board import Board
from falctl.board.rows import GpuRow, LifeRow, MemoryRow, ModelRow, RouterRow, RunnerRow

STALE_S: Final = 3.0
"""A process whose last beat is older is shown as silent; it is only shown, nothing is killed for it."""

CARD_STALE_S: Final = 5.0
"""Figures of a card that are older are shown as old: its sampler has missed several rounds."""


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What does not change while falctl runs."""

    version: str
    pid: int
    url: str
    app: str
    policy: str
    uptime_s: float


@dataclass(frozen=True, slots=True)
class RouterFacts:
    """The router as its last beat left it; ``stale`` says that this beat is old."""

    pid: int
    epoch: int
    stale: bool
    beat_age_s: float
    uptime_s: float
    draining: bool
    served: int
    hits: int
    misses: int
    hit_rate: float | None
    """Between 0 and 1; None before the first request with a hint."""
    refused: int
    queued: int
    queued_bytes: int
    in_flight: tuple[int, ...]
    rate_rps: float
    p50_s: float
    p95_s: float
    webhooks_failing: int
    """Tried in vain, and to be tried again."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """A GPU, or the share of the machine that a CPU runner has; None is "not known"."""

    card: int
    """Its row on the board, which `RunnerFacts.cards` names."""
    kind: Literal["cuda", "cpu"]
    gpu_index: int
    gpu_uuid: str
    name: str
    state: Literal["ok", "lost", "unknown"]
    total_bytes: int
    used_bytes: int
    util_pct: int | None
    temp_c: int | None
    power_w: float | None
    power_limit_w: float | None
    stale: bool
    age_s: float


@dataclass(frozen=True, slots=True)
class ExecutingFacts:
    """A request that holds a slot."""

    request: str
    hint: str | None
    step: int
    steps: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that a runner's cache knows, wherever its bytes are, or that is on its way in."""

    name: str
    state: Literal["loading", "ready"]
    load_s: float
    idle_s: float
    tier: Literal["vram", "ram", "disk"]
    """Where all of it is; while it loads, where from."""
    size_bytes: int
    """What it takes on the card; 0: nobody counts."""
    vram_bytes: int
    ram_bytes: int
    """What of it is on the card, and in host memory; parts that models share are counted for each."""
    fraction: float | None
    """How much of its load is done, between 0 and 1; None: it does not load, or nobody can tell."""
    pinned: bool
    leaves_in_s: float | None
    """Until it leaves its tier if nobody uses it before; None: not for that."""


@dataclass(frozen=True, slots=True)
class RunnerFacts:
    """A runner: its process as the supervisor sees it, its work as its host tells it."""

    runner: int
    app: str
    """The alias of its app; empty: there is one app."""
    state: str
    """One of `falctl.core.types.RUNNER_STATES`, or "unknown" when its life could not be read."""
    reason: str
    pid: int
    epoch: int
    restarts: int
    since_s: float
    restart_in_s: float | None
    """Seconds until its backoff ends; None outside backoff."""
    cards: tuple[int, ...]
    stale: bool
    """It should beat, and has not for `STALE_S`."""
    beat_age_s: float | None
    """None: its host has written nothing yet."""
    slots: int
    hints: tuple[str, ...] | None
    """None: the app gives no hints."""
    hints_dropped: int
    executing: tuple[ExecutingFacts, ...]
    models: tuple[ModelFacts, ...]
    served: int
    loads: int


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """The host memory that the runners share for weights."""

    budget_bytes: int
    """0: they share none."""
    held_bytes: int
    used_bytes: int
    """Of the bytes that are held what some runner refers to."""
    blocks: int
    waiting: int
    """Threads of runners that wait for another runner to fill a block."""


@dataclass(frozen=True, slots=True)
class QueuedFacts:
    """A waiting request."""

    request: str
    hint: str | None
    client: str
    age_s: float
    why: str
    """Why it waits, in a few words; empty: not told."""
    app: str
    """The alias of its app; empty: there is one app."""


@dataclass(frozen=True, slots=True)
class EventFacts:
    """One line of the tail of events."""

    age_s: float
    text: str


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """The whole fleet at ``at`` (CLOCK_MONOTONIC seconds); None where the board had nothing readable."""

    at: float
    fleet: FleetFacts | None
    router: RouterFacts | None
    cards: tuple[CardFacts, ...]
    runners: tuple[RunnerFacts, ...]
    queue: tuple[QueuedFacts, ...]
    """Oldest first; the first 256 of `RouterFacts.queued`."""
    events: tuple[EventFacts, ...]
    """Oldest first."""
    memory: MemoryFacts | None = None


def take(board: Board, *, now: float) -> FleetSnapshot:
    """Return the fleet as the board tells it at *now* (CLOCK_MONOTONIC seconds); a row that is None is left out."""
    router = board.router()
    runners = tuple(
        _runner(i, life=board.life(i), row=board.runner(i), now=now) for i in range(board.runners)
    )
    return FleetSnapshot(
        at=now,
        fleet=_fleet(board, now=now),
        router=_router(router, now=now) if router else None,
        cards=_cards(board, runners, now=now),
        runners=runners,
        queue=_queue(router, now=now),
        events=tuple(EventFacts(_age(e.at, now), e.text) for e in router.events) if router else (),
        memory=_memory(board.memory()),
    )


def _memory(row: MemoryRow | None) -> MemoryFacts | None:
    if row is None:
        return None
    return MemoryFacts(row.budget_bytes, row.held_bytes, row.used_bytes, row.blocks, row.waiting)


def _age(at: float, now: float) -> float:
    return _finite(max(0.0, now - at))


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 0.0


def _fleet(board: Board, *, now: float) -> FleetFacts | None:
    row = board.fleet()
    if row is None:
        return None
    return FleetFacts(
        version=row.version,
        pid=row.pid,
        url=row.url,
        app=row.app,
        policy=row.policy,
        uptime_s=_age(row.started_at, now),
    )


def _router(row: RouterRow, *, now: float) -> RouterFacts:
    judged = row.hits + row.misses
    return RouterFacts(
        pid=row.pid,
        epoch=row.epoch,
        stale=now - row.beat_at > STALE_S,
        beat_age_s=_age(row.beat_at, now),
        uptime_s=_age(row.started_at, now),
        draining=row.draining,
        served=row.served,
        hits=row.hits,
        misses=row.misses,
        hit_rate=row.hits / judged if judged else None,
        refused=row.refused,
        queued=row.queued,
        queued_bytes=row.queued_bytes,
        in_flight=row.in_flight,
        rate_rps=_finite(row.rate_rps),
        p50_s=_finite(row.p50_s),
        p95_s=_finite(row.p95_s),
        webhooks_failing=row.webhooks_failing,
    )


def _queue(row: RouterRow | None, *, now: float) -> tuple[QueuedFacts, ...]:
    if row is None:
        return ()
    waiting = (
        QueuedFacts(q.request, q.hint, q.client, _age(q.arrived_at, now), q.why, q.app) for q in row.queue
    )
    return tuple(sorted(waiting, key=lambda q: -q.age_s))


def _cards(board: Board, runners: Iterable[RunnerFacts], *, now: float) -> tuple[CardFacts, ...]:
    """Return every card that has a row, and an unknown one for each that only a runner speaks of."""
    rows = {card: board.gpu(card) for card in range(board.gpus)}
    pinned = {card for runner in runners for card in runner.cards}
    known = {card for card, row in rows.items() if row is not None}
    return tuple(_card(card, rows.get(card), now=now) for card in sorted(known | pinned))


def _card(card: int, row: GpuRow | None, *, now: float) -> CardFacts:
    row = row or GpuRow("cuda", card, "", "", "unknown", 0, 0, at=now)
    return CardFacts(
        card=card,
        kind=row.kind,
        gpu_index=row.gpu_index,
        gpu_uuid=row.gpu_uuid,
        name=row.name,
        state=row.state,
        total_bytes=row.total_bytes,
        used_bytes=row.used_bytes,
        util_pct=row.util_pct,
        temp_c=row.temp_c,
        power_w=None if row.power_w is None else _finite(row.power_w),
        power_limit_w=None if row.power_limit_w is None else _finite(row.power_limit_w),
        stale=now - row.at > CARD_STALE_S,
        age_s=_age(row.at, now),
    )


def _runner(runner: int, *, life: LifeRow | None, row: RunnerRow | None, now: float) -> RunnerFacts:
    if life is not None and row is not None and row.epoch != life.epoch:
        row = None  # It speaks of an earlier incarnation, whose models and requests are gone.
    beats = life is not None and life.state in {"ready", "draining"}
    return RunnerFacts(
        runner=runner,
        app=life.app if life else "",
        state=life.state if life else "unknown",
        reason=life.reason if life else "",
        pid=life.pid if life else 0,
        epoch=life.epoch if life else row.epoch if row else 0,
        restarts=life.restarts if life else 0,
        since_s=_age(life.since_at, now) if life else 0.0,
        restart_in_s=_finite(max(0.0, life.restart_at - now)) if life and life.state == "backoff" else None,
        cards=tuple(life.gpus) if life else (),
        stale=beats and (row is None or now - row.beat_at > STALE_S),
        beat_age_s=_age(row.beat_at, now) if row else None,
        slots=row.slots if row else 0,
        hints=row.hints if row else (),
        hints_dropped=row.hints_dropped if row else 0,
        executing=_executing(row, now=now),
        models=tuple(_model(model, now=now) for model in row.models) if row else (),
        served=row.served if row else 0,
        loads=row.loads if row else 0,
    )


def _model(row: ModelRow, *, now: float) -> ModelFacts:
    return ModelFacts(
        name=row.name,
        state=row.state,
        load_s=_finite(row.load_s),
        idle_s=_age(row.used_at, now),
        tier=row.tier,
        size_bytes=row.size_bytes or max(row.vram_bytes, row.ram_bytes),
        vram_bytes=row.vram_bytes,
        ram_bytes=row.ram_bytes,
        fraction=None if row.fraction is None else min(1.0, max(0.0, _finite(row.fraction))),
        pinned=row.pinned,
        leaves_in_s=None if row.keep_until is None else _finite(max(0.0, row.keep_until - now)),
    )


def _executing(row: RunnerRow | None, *, now: float) -> tuple[ExecutingFacts, ...]:
    if row is None:
        return ()
    return tuple(
        ExecutingFacts(e.request, e.hint, e.step, e.steps, _age(e.started_at, now)) for e in row.executing
    )
