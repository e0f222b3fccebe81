"""What the job store is given and gives back, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from falctl.core.retries import Condition, Outcome
from falctl.core.types import RequestId


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How long and how much is kept."""

    keep_s: float
    """Ended jobs, with results and logs, are deleted after this long."""
    max_bytes: int
    """Bytes of requests, results and logs on the disk: over it, ended jobs leave early, then submissions are refused."""
    log_bytes_max: int = 1 << 20
    """Of one job; further lines are not kept."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it was submitted. ``envelope`` says all of the request but its body; the store does not look into it."""

    request: RequestId
    envelope: bytes
    body: bytes
    receiver: str | None = None
    """Who is to be told of its end by a webhook; None: nobody."""
    brief: bool = False
    """It leaves soon after somebody has had its result."""


@dataclass(frozen=True, slots=True)
class SavedJob:
    """A job as it stands on the disk, without its body."""

    request: RequestId
    number: int
    """Its place in order of submission."""
    envelope: bytes
    submitted_at: float
    """Wall clock, in seconds since 1970, as every instant on the disk."""
    attempts: int = 0
    failures: Mapping[Condition, int] = field(default_factory=dict)
    dispatched: bool = False
    cancel_asked: bool = False
    ending: Ending | None = None
    """None: it has not ended."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an app answered; the client fetches it later."""

    headers: tuple[tuple[str, str], ...]
    """Bytes above ASCII are latin-1, as in HTTP."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Ending:
    """How and when a job ended."""

    outcome: Outcome
    inference_s: float | None
    """How long its last attempt ran; None: it had none."""
    ended_at: float


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that an app printed while it served a job."""

    at: float
    level: str
    message: str
