"""
What stands on the board, as values: one row per region, each written by one process.

A row travels as compact JSON inside its region; `falctl.board.layout` knows the bytes around it. Instants
(``*_at``) are CLOCK_MONOTONIC seconds, comparable between all processes of one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from falctl.core.types import Epoch, Hint, RequestId, RunnerId, RunnerState


@dataclass(frozen=True, slots=True)
class FleetRow:
    """Written by the supervisor when falctl starts, once."""

    version: str
    pid: int
    url: str
    app: str
    policy: str
    started_at: float


@dataclass(frozen=True, slots=True)
class Executing:
    """A request that holds a slot. ``step`` of ``steps`` is what the app last reported; 0 of 0: nothing yet."""

    request: RequestId
    hint: Hint | None
    started_at: float
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that the runner's cache knows, wherever its bytes are, or that is on its way in."""

    name: str
    state: Literal["loading", "ready"]
    used_at: float
    load_s: float = 0.0
    """How long its load took; 0 while it loads."""
    tier: Literal["vram", "ram", "disk"] = "vram"
    """Where all of its bytes are: the slowest of its parts says. While it loads: where it is loaded from."""
    size_bytes: int = 0
    """What all of it takes on the device; 0: nobody can tell before it is loaded, or this cache counts no bytes."""
    vram_bytes: int = 0
    """What of it is on the device now; parts that models share are counted for each. 0: this cache counts no bytes."""
    ram_bytes: int = 0
    """The same in host memory."""
    fraction: float | None = None
    """How much of its load is done, from 0 to 1; None: it does not load, or nobody can tell."""
    pinned: bool = False
    """It leaves for nothing, until somebody unpins it."""
    keep_until: float | None = None
    """When it leaves its tier if nobody uses it before; None: not for that."""


@dataclass(frozen=True, slots=True)
class RunnerRow:
    """Written by the host of the runner."""

    epoch: Epoch
    slots: int
    hints: tuple[Hint, ...] | None
    """None: the app gives no hints. Empty: it does, and is warm for nothing yet."""
    executing: tuple[Executing, ...] = ()
    models: tuple[ModelRow, ...] = ()
    served: int = 0
    """Requests that this incarnation has finished."""
    loads: int = 0
    beat_at: float = 0.0
    """The host's loop ran at this instant."""
    progress_at: float = 0.0
    """A request started or ended, a step was done or a model loaded, at this instant."""
    progress_known: bool = False
    """Whether the request that runs has done steps of its own, so that silence is a stall."""
    hints_dropped: int = 0
    """Hints that did not fit the row."""
    device_bytes: int = 0
    """What its process's allocator holds of its first card, its CUDA context not counted; 0 on a CPU."""


@dataclass(frozen=True, slots=True)
class LifeRow:
    """Written by the supervisor: the state of a runner's process."""

    runner: RunnerId
    epoch: Epoch
    pid: int
    """0: no process now."""
    state: RunnerState
    since_at: float
    restarts: int
    reason: str
    """Why it is not ready, in words; the stage of its start while starting."""
    gpus: tuple[int, ...]
    """Rows of `GpuRow` that it is pinned to; two runners on one card share one. A CPU runner has its own."""
    restart_at: float = 0.0
    """When backoff ends; 0 outside it."""
    app: str = ""
    """The alias of its app; empty: falctl runs one, without a name."""


@dataclass(frozen=True, slots=True)
class GpuRow:
    """Written by the supervisor, from NVML (``kind`` "cuda") or from psutil for a CPU runner."""

    kind: Literal["cuda", "cpu"]
    gpu_index: int
    """NVML's index, for display only; the runner's number for a CPU runner."""
    gpu_uuid: str
    name: str
    state: Literal["ok", "lost", "unknown"]
    total_bytes: int
    used_bytes: int
    util_pct: int | None = None
    temp_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Written by the supervisor: the host memory that the runners share (`cache.host_memory`)."""

    budget_bytes: int
    """0: they share none."""
    held_bytes: int = 0
    """What all blocks take."""
    used_bytes: int = 0
    """Of these what some runner refers to; the rest leaves when its room is needed."""
    blocks: int = 0
    """One for each component whose weights are held."""
    waiting: int = 0
    """Runners' threads that wait for another runner to fill a block."""


@dataclass(frozen=True, slots=True)
class QueuedRow:
    """A waiting request."""

    request: RequestId
    hint: Hint | None
    client: str
    arrived_at: float
    why: str = ""
    """Why it waits, in a few words; only of the oldest models. Empty: not told."""
    app: str = ""
    """The alias of its app; empty: falctl runs one, without a name."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of the tail of events: what changed, in words."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class RouterRow:
    """Written by the router, at most four times a second and at least once."""

    pid: int
    epoch: int
    beat_at: float
    started_at: float
    draining: bool
    served: int
    hits: int
    """Requests with a hint whose model was resident when they started; counts of this incarnation."""
    misses: int
    refused: int
    queued: int
    queued_bytes: int
    in_flight: tuple[int, ...]
    """Dispatched and not yet released, per runner, by runner id."""
    rate_rps: float
    """Requests finished per second, over the last minute."""
    p50_s: float
    p95_s: float
    """Latency from arrival to last byte, over the last 512 requests; 0 before the first."""
    queue: tuple[QueuedRow, ...] = ()
    """The first 256."""
    events: tuple[EventRow, ...] = ()
    """The last 64."""
    loading: tuple[int, ...] = ()
    """Load jobs asked for and not heard of again, per runner, by runner id."""
    webhooks_failing: int = 0
    """Webhooks of queued jobs that have been tried in vain and will be tried again."""
