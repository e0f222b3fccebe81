"""The nouns of falctl, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NewType

RunnerId = NewType("RunnerId", int)
"""Position of a runner in the fleet, from 0; stable over restarts."""

RequestId = NewType("RequestId", str)
"""What the client sees as X-Fal-Request-Id."""

Hint = NewType("Hint", str)
"""
An opaque string, compared exactly. One that came in a header is its bytes decoded as latin-1, so that equal
strings are equal bytes; one from a JSON body is the string itself.
"""

Epoch = NewType("Epoch", int)
"""Incarnation number of a runner, from 1; news of an older one is dropped."""

HintSource = Literal["header", "body"]

Priority = Literal["normal", "low"]

MiB: Final = 1 << 20
GiB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Wanted:
    """The hint a request carries, and where it was found."""

    hint: Hint
    source: HintSource
    laid: tuple[str, ...] = ()
    """What is to be laid upon that model: a part of its name if the app joins such names (`Caps.joint`), as `falctl.core.sources.named` says."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What a runner can do beyond serving requests. None: no limit is known."""

    gpu: str = ""
    """The model of its card: cards of one model are taken to be equally fast until they show that they are not."""
    loads: bool = False
    """It takes loads as jobs of their own, and evicts what it is told to."""
    overlaps: bool = False
    """Such a load may run beside an execution."""
    models_max: int | None = None
    vram_bytes: int | None = None
    """What its cards can hold of models."""
    run_bytes: int | None = None
    """The largest model that it could run at all, with whatever its cards cannot hold at one time in host memory."""
    joint: str = ""
    """What its app writes between a base and what is laid upon it: ``+`` in ``base+lora``; empty: its hints say nothing."""


NO_CAPS: Final = Caps()

RunnerState = Literal["starting", "ready", "draining", "backoff", "failed", "stopped"]
"""
Life of a runner: starting -> ready -> draining -> stopped; an exit leads to backoff, then starting again;
too many exits lead to failed, which only `falctl up` leaves.
"""

RUNNER_STATES: Final[tuple[RunnerState, ...]] = (
    "starting",
    "ready",
    "draining",
    "backoff",
    "failed",
    "stopped",
)
