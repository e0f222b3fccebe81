"""Rows to put on a board."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from falctl.board.rows import (
    EventRow,
    Executing,
    FleetRow,
    GpuRow,
    LifeRow,
    ModelRow,
    QueuedRow,
    RouterRow,
    RunnerRow,
)
from falctl.core.types import Epoch, Hint, RequestId, RunnerId


def runner_row(n: int = 1, *, hints: tuple[str, ...] | None = ()) -> RunnerRow:
    """A row in which everything that can says *n*."""
    return RunnerRow(
        epoch=Epoch(n),
        slots=1,
        hints=None if hints is None else tuple(map(Hint, hints)),
        served=n,
        loads=n,
        beat_at=n,
    )


def told_apart(n: int) -> RunnerRow:
    """A row whose every part follows from *n*, so that a mixture of two is seen."""
    return runner_row(n, hints=tuple(f"{n}-{i}" for i in range(n % 40)))


def fleet_row(url: str = "http://127.0.0.1:8808") -> FleetRow:
    return FleetRow(version="1", pid=7, url=url, app="a:B", policy="fal", started_at=1.5)


def life_row(reason: str = "") -> LifeRow:
    return LifeRow(
        runner=RunnerId(0),
        epoch=Epoch(1),
        pid=7,
        state="ready",
        since_at=1.0,
        restarts=0,
        reason=reason,
        gpus=(0, 1),
    )


def gpu_row(name: str = "card") -> GpuRow:
    return GpuRow(
        kind="cuda",
        gpu_index=0,
        gpu_uuid="GPU-1",
        name=name,
        state="ok",
        total_bytes=1 << 40,
        used_bytes=3,
        power_w=71.5,
    )


def router_row(queue: tuple[QueuedRow, ...] = (), events: tuple[EventRow, ...] = ()) -> RouterRow:
    numbers: dict[str, Any] = dict.fromkeys((f.name for f in fields(RouterRow)), 0)
    return RouterRow(
        **{
            **numbers,
            "draining": False,
            "in_flight": (1, 0),
            "loading": (0, 1),
            "queue": queue,
            "events": events,
        }
    )


def queued(n: int, *, hint: str | None = "m", client: str = "127.0.0.1") -> QueuedRow:
    return QueuedRow(
        request=RequestId(f"r{n}"), hint=None if hint is None else Hint(hint), client=client, arrived_at=n
    )


def executing(hint: str | None = "m") -> Executing:
    return Executing(
        request=RequestId("r"), hint=None if hint is None else Hint(hint), started_at=1.0, step=2, steps=9
    )


def model(name: str = "m") -> ModelRow:
    return ModelRow(
        name=name,
        state="ready",
        used_at=2.0,
        load_s=0.5,
        tier="ram",
        vram_bytes=1 << 20,
        ram_bytes=7 << 30,
        fraction=0.25,
        pinned=True,
        keep_until=9.5,
    )


def numbered_life(n: int) -> LifeRow:
    """A life row whose every part follows from *n*."""
    return replace(life_row(f"{n} " * (n % 40)), epoch=Epoch(n), restarts=n)
