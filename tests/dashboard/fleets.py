"""Fleets to look at: rows as the real writers would leave them, at an instant of our choosing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from falctl.board.board import Board
from falctl.board.rows import (
    EventRow,
    Executing,
    FleetRow,
    GpuRow,
    LifeRow,
    MemoryRow,
    ModelRow,
    QueuedRow,
    RouterRow,
    RunnerRow,
)
from falctl.core.types import Epoch, GiB, Hint, RequestId, RunnerId, RunnerState

NOW = 10_000.0


def put_busy(board: Board, *, now: float = NOW, pid: int = 4100) -> None:
    """Fill a board of 5 runners and 4 cards: two share card 2, one is in backoff, one loads."""
    board.put_fleet(
        FleetRow(
            "0.1.0", pid, "http://127.0.0.1:8808", "runners.diffusion:AnyModelRunner", "affinity", now - 8054
        )
    )
    board.put_router(busy_router(now=now))
    board.put_memory(MemoryRow(64 * GiB, 41 * GiB, 29 * GiB, 7, 1))
    cards = ((91, 66, 612.0, 61.2), (38, 51, 274.0, 44.7), (100, 78, 688.0, 78.9), (0, 34, 71.0, 0.6))
    for card, (util, temp, power, used) in enumerate(cards):
        board.put_gpu(
            card, h100(card, util_pct=util, temp_c=temp, power_w=power, used_gib=used, at=now - 0.4)
        )
    for runner, gpus in enumerate(((0,), (1,), (2,), (2,), (3,))):
        board.put_life(runner, life(runner, gpus=gpus, now=now))
    board.put_runner(
        0,
        RunnerRow(
            Epoch(1),
            1,
            hints("sdxl-turbo", "flux.1-dev"),
            executing=(Executing(RequestId("r-81"), Hint("flux.1-dev"), now - 3.2, 14, 28),),
            models=(
                sized("flux.1-dev", 22.2),
                replace(sized("sdxl-turbo", 6.5), pinned=True, keep_until=now + 90),
                replace(sized("sdxl-base", 6.5), tier="ram", vram_bytes=0),
                replace(sized("old", 6.5), tier="disk", vram_bytes=0, ram_bytes=0),
            ),
            served=5120,
            loads=9,
            beat_at=now - 0.2,
        ),
    )
    board.put_runner(
        1,
        RunnerRow(
            Epoch(1),
            1,
            hints("stable-diffusion-3.5-large", "lora:watercolour"),
            models=(
                model("stable-diffusion-3.5-large"),
                ModelRow("qwen-image", "loading", now - 6.0, tier="ram", fraction=0.43),
            ),
            executing=(Executing(RequestId("r-84"), Hint("qwen-image"), now - 6.4),),
            served=4022,
            loads=31,
            beat_at=now - 0.1,
        ),
    )
    for runner in (2, 3):
        board.put_runner(
            runner,
            RunnerRow(
                Epoch(1),
                1,
                hints("pixart-sigma"),
                models=(model("pixart-sigma"),),
                served=1600 * runner - 3200,
                beat_at=now - 0.3,
            ),
        )
    board.put_life(
        4,
        life(
            4,
            gpus=(3,),
            now=now,
            state="backoff",
            reason="exited: killed by signal 9 (SIGKILL), perhaps out of memory",
            restarts=2,
            restart_at=now + 3.0,
        ),
    )


def busy_router(*, now: float = NOW, beat_at: float | None = None) -> RouterRow:
    """Return a router that serves 3.2 requests a second and has three waiting."""
    return RouterRow(
        pid=4101,
        epoch=1,
        beat_at=now - 0.1 if beat_at is None else beat_at,
        started_at=now - 8050,
        draining=False,
        served=12431,
        hits=11560,
        misses=871,
        refused=0,
        queued=3,
        queued_bytes=2048,
        in_flight=(1, 1, 0, 0, 0),
        rate_rps=3.24,
        p50_s=1.24,
        p95_s=6.83,
        queue=(
            QueuedRow(
                RequestId("8f14e45fceea"),
                Hint("flux.1-dev"),
                "127.0.0.1:51514",
                now - 4.2,
                "runner 0 busy, 3.1 s left",
            ),
            QueuedRow(RequestId("c9f0f895fb98"), None, "127.0.0.1:51520", now - 1.1),
            QueuedRow(
                RequestId("45c48cce2e2d"),
                Hint("qwen-image"),
                "127.0.0.1:51530",
                now - 0.3,
                "runner 1 loads it, 12 s left",
            ),
        ),
        events=(
            EventRow(now - 7300, "runner 1 ready in 21 s"),
            EventRow(now - 96, "runner 3 ready in 19 s"),
            EventRow(now - 62, "runner 4 exited: signal 9; 1 request answered 503"),
            EventRow(now - 6.4, "runner 1 loads qwen-image"),
        ),
    )


def put_cpu(board: Board, *, now: float = NOW, pid: int = 4100) -> None:
    """Fill a board of 2 CPU runners that have just become ready: no request yet, no model yet."""
    board.put_fleet(
        FleetRow(
            "0.1.0", pid, "http://127.0.0.1:8808", "runners.diffusion:AnyModelRunner", "affinity", now - 9
        )
    )
    board.put_router(RouterRow(4101, 1, now - 0.1, now - 8, False, 0, 0, 0, 0, 0, 0, (0, 0), 0.0, 0.0, 0.0))
    for runner in (0, 1):
        board.put_gpu(
            runner,
            GpuRow(
                "cpu", runner, f"cpu-{runner}", "CPU", "ok", 16 * GiB, 640 << 20, util_pct=3, at=now - 0.5
            ),
        )
        board.put_life(runner, life(runner, gpus=(runner,), now=now))
        board.put_runner(runner, RunnerRow(Epoch(1), 1, (), beat_at=now - 0.2))


def h100(
    card: int, *, util_pct: int | None, temp_c: int, power_w: float, used_gib: float, at: float
) -> GpuRow:
    """Return a healthy card of 79.6 GiB."""
    return GpuRow(
        "cuda",
        card,
        f"GPU-{card:08x}",
        "NVIDIA H100 80GB HBM3",
        "ok",
        int(79.6 * GiB),
        int(used_gib * GiB),
        util_pct,
        temp_c,
        power_w,
        700.0,
        at,
    )


def life(
    runner: int,
    *,
    gpus: tuple[int, ...],
    now: float = NOW,
    state: RunnerState = "ready",
    reason: str = "",
    restarts: int = 0,
    restart_at: float = 0.0,
) -> LifeRow:
    """Return the life of a runner in its first incarnation, for 62 s in *state*."""
    return LifeRow(
        RunnerId(runner),
        Epoch(1),
        4200 + runner,
        state,
        now - 62,
        restarts,
        reason,
        gpus,
        restart_at,
    )


def hints(*names: str) -> tuple[Hint, ...]:
    return tuple(Hint(name) for name in names)


def model(name: str) -> ModelRow:
    return ModelRow(name, "ready", NOW - 12, 5.5)


def sized(name: str, size_gib: float) -> ModelRow:
    """Return a model that is on the card, and in host memory too."""
    size = int(size_gib * GiB)
    return replace(model(name), size_bytes=size, vram_bytes=size, ram_bytes=size)


def new_board(folder: Path, *, runners: int, gpus: int) -> Board:
    """Return an empty board, writable, at ``folder/board``."""
    return Board.create(folder / "board", runners=runners, gpus=gpus)
