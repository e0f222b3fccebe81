"""
The life of one child process, as a machine: what its supervisor is told, and what it must do.

    state      event                          next       action
    (new)      Begin                          starting   Spawn(1)
    starting   BecameReady                    ready
    starting   Watched, over setup_timeout    starting   Kill
    ready      Watched, hung                  ready      Kill
    any        Exited                         backoff    (nothing until the pause is over)
    ready      Exited, retired after a while  backoff    (the shortest pause; it is no failure)
    any        Exited, too many in the window failed
    backoff    Tick, the pause is over        starting   Spawn(epoch + 1)
    any        Condemned                      failed     Kill, unless it is dead already
    alive      Struck                         (same)     Kill
    any        End                            draining   (its owner stops it)
    draining   Exited                         stopped

An exit is a fact that ``wait()`` tells; silence is not. A runner is *hung* when it executes a request, or performs a
load job, and gives no sign of life: its event loop has not run for ``stall_timeout_s``, or the app has reported steps
of this request before and now none for as long, or either has run for ``request_timeout_s``. A long job of an app
that reports nothing is left alone until the last of these.
"""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, assert_never

from falctl.core.lookout import Gap, watched_s
from falctl.core.types import Epoch, RunnerState
from falctl.errors import EXIT_CARD_BROKEN, EXIT_OVERDUE

STABLE_S: Final = 10.0
"""Ready for this long is a success: the pause before the next restart is the first one again."""

SPARE_S: Final = 30.0
"""A runner ends a request at the limit of its app by itself; it is killed if it has not by then."""

_MEANINGS: Final = {
    EXIT_CARD_BROKEN: "its GPU failed, and CUDA could not be used in it any more: see the log",
    EXIT_OVERDUE: "a request ran for longer than its app allows, and could not be stopped",
}
"""What a runner says by its exit code."""

NO_EPOCH: Final = Epoch(0)
"""Before the first incarnation."""


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Start it for the first time."""


@dataclass(frozen=True, slots=True)
class Staged:
    """It says at which stage of its start it is, in words."""

    epoch: Epoch
    text: str


@dataclass(frozen=True, slots=True)
class Declared:
    """Its app asks for limits that are longer than ours, and may have them; None: it does not."""

    epoch: Epoch
    setup_timeout_s: float | None
    """For `setup()` alone: what else a start takes has our limit beside it."""
    request_timeout_s: float | None


@dataclass(frozen=True, slots=True)
class BecameReady:
    """It serves."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class CouldNotStart:
    """It says why it is about to exit."""

    epoch: Epoch
    message: str


@dataclass(frozen=True, slots=True)
class Exited:
    """``wait()`` returned ``code``: an exit status, or minus the number of a signal."""

    epoch: Epoch
    code: int
    retired: bool = False
    """Its app asked for another process, as fal's do after each error of the GPU: no crash, if it had served a while."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the board says of a runner's liveness; instants are monotonic seconds."""

    executing_since: float | None
    """When the oldest request in its slots or load job began, or was sent; None: it has none."""
    beat_at: float
    progress_at: float
    progress_known: bool
    gaps: tuple[Gap, ...] = ()
    """When nobody looked (`core/lookout.py`): silence then is not held against it."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Its vitals were looked at; ``vitals`` is None when it has not written any."""

    epoch: Epoch
    vitals: Vitals | None


@dataclass(frozen=True, slots=True)
class Condemned:
    """It must not live on and not come back: its GPU is lost."""

    reason: str


@dataclass(frozen=True, slots=True)
class Struck:
    """What it holds on its GPU cannot be trusted any more; another process may be fine."""

    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The fleet stops: the next exit is wanted."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    Begin
    | Staged
    | Declared
    | BecameReady
    | CouldNotStart
    | Exited
    | Watched
    | Condemned
    | Struck
    | End
    | Tick
)

# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the next incarnation."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL its whole family; its exit follows as an event."""

    reason: str


Action: TypeAlias = Spawn | Kill


@dataclass(frozen=True, slots=True)
class LifeLimits:
    """The `[runners]` section as far as lives go; everything in seconds but ``restarts_max``."""

    setup_timeout_s: float
    request_timeout_s: float
    stall_timeout_s: float
    restarts_max: int
    restarts_window_s: float
    backoff_min_s: float
    backoff_max_s: float


@dataclass(slots=True)
class Life:
    """One child. Read its fields, change it through `handle` alone."""

    limits: LifeLimits
    state: RunnerState = "stopped"
    epoch: Epoch = NO_EPOCH
    since_at: float = 0.0
    restarts: int = 0
    reason: str = ""
    restart_at: float = 0.0
    _failures: int = 0
    _exits: deque[float] = field(default_factory=deque)
    _killed_for: str = ""
    _complaint: str = ""
    _condemned: bool = False
    _declared: Declared | None = None

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Apply *event* at monotonic instant *now*; return what to do, in order."""
        match event:
            case Begin():
                return self._spawn(now)
            case Tick():
                return self._spawn(now) if self.state == "backoff" and now >= self.restart_at else []
            case Condemned(reason):
                return self._condemn(reason, now)
            case Struck(reason):
                alive = self.state in ("starting", "ready") and not self._killed_for
                return self._kill(reason) if alive else []
            case End():
                if self.state not in ("stopped", "failed"):
                    self._enter("stopped" if self.state == "backoff" else "draining", now)
                return []
            case Staged() | Declared() | BecameReady() | CouldNotStart() | Exited() | Watched():
                return self._hear(event, now) if event.epoch == self.epoch else []
            case _:
                assert_never(event)

    def _hear(
        self, event: Staged | Declared | BecameReady | CouldNotStart | Exited | Watched, now: float
    ) -> list[Action]:
        match event:
            case Staged(_, text):
                if self.state == "starting":
                    self.reason = text
            case Declared():
                self._declared = event
            case BecameReady():
                if self.state == "starting":
                    self._enter("ready", now)
            case CouldNotStart(_, message):
                self._complaint = message
            case Exited():
                self._bury(event, now)
            case Watched(_, vitals):
                return self._watch(vitals, now)
            case _:
                assert_never(event)
        return []

    def _spawn(self, now: float) -> list[Action]:
        self.epoch = Epoch(self.epoch + 1)
        self.restarts = self.epoch - 1
        self._killed_for = self._complaint = ""
        self._declared = None
        self._enter("starting", now, "spawned")
        return [Spawn(self.epoch)]

    def _bury(self, exited: Exited, now: float) -> None:
        if self.state == "draining":
            return self._enter("stopped", now)
        at = f" (it was at: {self.reason})" if self.state == "starting" and self.reason else ""
        why = self._killed_for or self._complaint or describe_exit(exited.code) + at
        if self._condemned:
            return self._enter("failed", now, why)
        if self.state == "ready" and now - self.since_at >= STABLE_S:
            self._failures = 0
            if exited.retired:
                self._enter("backoff", now, "retired: its app asked for another process")
                self.restart_at = now + self.limits.backoff_min_s
                return None
        self._failures += 1
        self._exits.append(now)
        while self._exits[0] < now - self.limits.restarts_window_s:
            self._exits.popleft()
        if len(self._exits) > self.limits.restarts_max:
            window = f"{len(self._exits)} exits in {self.limits.restarts_window_s:.0f} s"
            return self._enter("failed", now, f"{window}; the last: {why}")
        self._enter("backoff", now, why)
        pause = self.limits.backoff_min_s * 2.0 ** min(self._failures - 1, 32)
        self.restart_at = now + min(pause, self.limits.backoff_max_s)
        return None

    def _watch(self, vitals: Vitals | None, now: float) -> list[Action]:
        if self._killed_for:
            return []
        limits = self._limits()
        if self.state == "starting" and now - self.since_at > limits.setup_timeout_s:
            stage = f" (it was at: {self.reason})" if self.reason else ""
            return self._kill(f"not ready within runners.setup_timeout, {limits.setup_timeout_s:g} s{stage}")
        if self.state == "ready" and vitals is not None and (why := hung(vitals, limits, now=now)):
            return self._kill(why)
        return []

    def _limits(self) -> LifeLimits:
        """Return what this incarnation is held to."""
        if self._declared is None:
            return self.limits
        setup_s, request_s = self._declared.setup_timeout_s, self._declared.request_timeout_s
        return replace(
            self.limits,
            setup_timeout_s=self.limits.setup_timeout_s + (setup_s or 0.0),
            request_timeout_s=self.limits.request_timeout_s if request_s is None else request_s + SPARE_S,
        )

    def _kill(self, reason: str) -> list[Action]:
        self._killed_for = reason
        return [Kill(reason)]

    def _condemn(self, reason: str, now: float) -> list[Action]:
        if self._condemned or self.state in ("failed", "stopped"):
            return []
        self._condemned = True
        if self.state == "backoff":
            self._enter("failed", now, reason)
            return []
        return self._kill(reason)

    def _enter(self, state: RunnerState, now: float, reason: str = "") -> None:
        self.state, self.since_at, self.reason, self.restart_at = state, now, reason, 0.0


def hung(vitals: Vitals, limits: LifeLimits, *, now: float) -> str:
    """Return why a runner with these *vitals* is hung, in words; empty: it is not."""
    since = vitals.executing_since
    if since is None:
        return ""
    stall_s = limits.stall_timeout_s
    if watched_s(max(vitals.beat_at, since), vitals.gaps, now=now) > stall_s:
        return f"hung: executing, and its event loop has not run for {stall_s:g} s (runners.stall_timeout)"
    if vitals.progress_known and watched_s(max(vitals.progress_at, since), vitals.gaps, now=now) > stall_s:
        return f"hung: executing, and no step for {stall_s:g} s (runners.stall_timeout)"
    if now - since > limits.request_timeout_s:
        return (
            f"a request or a load ran for more than {limits.request_timeout_s:g} s (runners.request_timeout)"
        )
    return ""


def describe_exit(code: int) -> str:
    """Return *code*, as ``wait()`` gives it, in words."""
    if code >= 0:
        why = f" ({_MEANINGS[code]})" if code in _MEANINGS else ""
        return f"exited with code {code}{why}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    who = " (by somebody, or by the kernel for want of memory: see dmesg)" if code == -signal.SIGKILL else ""
    return f"killed by {name}{who}"
