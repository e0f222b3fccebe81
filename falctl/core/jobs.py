"""
The life of one queued job, as a machine: what its owner is told, and what it must do.

    state      event                        next       actions
    (new)      Submitted                    saving     Save(job)
    saving     Saved(job)                   waiting    Acknowledge(job), Wait
    saving     NotSaved(job)                refused    Acknowledge(job): nobody was promised anything
    waiting    Granted (it has a slot)      starting   Save(attempt)
    starting   Saved(attempt)               running    Send
    starting   NotSaved(attempt)            waiting    GiveBack, Wait
    running    Bounced (app not entered)    waiting    Save(retry), Wait; the attempt does not count
    running    AttemptEnded, to be retried  waiting    Save(retry), Wait(freed)
    running    AttemptEnded                 ending     Save(end)
    waiting    Refused for good             ending     Save(end)
    waiting    CancelAsked                  ending     Withdraw, Save(end)
    starting   CancelAsked                  starting   Save(cancel); it ends instead of being sent
    running    CancelAsked                  running    Save(cancel), StopAttempt
    ending     Saved(end)                   completed, failed or cancelled   Finish

Persistence is an action whose completion is an event, so that what a client hears is on the disk: a job before its
id, an attempt before it is sent, a cancellation before it is confirmed, an end before it is told. Writes become
durable in the order in which they were asked for. Only the first can be refused; the others are tried until they
succeed, but for ``retry``, without which a crash may count one attempt more. After a restart `Recovered` begins where
the disk stands: an attempt that was under way counts as one whose connection broke. Its app may run on, as it may
whenever a connection breaks; the next attempt waits until no runner is at it any more, so that there are never two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from falctl.core.retries import (
    DEFAULT_RULES,
    SILENT,
    AppRetries,
    Condition,
    Outcome,
    RetryRules,
    Tried,
    pause_s,
    retries,
)
from falctl.core.types import RequestId

JobState = Literal[
    "new", "saving", "refused", "waiting", "starting", "running", "ending", "completed", "failed", "cancelled"
]
Record = Literal["job", "attempt", "retry", "cancel", "end"]
"""A record bears the fields as they are when it is asked for. Nobody waits for a ``retry``."""

ENDED: Final[frozenset[JobState]] = frozenset({"completed", "failed", "cancelled"})

CANCELLED: Final = Outcome(499, "client_cancelled")
LOST: Final = Outcome(503, "runner_disconnected", "connection_error")
"""What became of an attempt that was under way when the router ended."""

AGAIN_S: Final = 1.0
"""Pause before what could not be written is written again, and before who found no runner asks again."""


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client hands it in."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """It stood on the disk when the router started."""

    dispatched: bool
    """An attempt had been persisted, and may have been sent."""
    app: AppRetries = SILENT
    """What its app says now of retries."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A record is durable."""

    record: Record


@dataclass(frozen=True, slots=True)
class NotSaved:
    """A record could not be made durable, and is not."""

    record: Record


@dataclass(frozen=True, slots=True)
class Granted:
    """A runner has a slot for it, and the slot is taken."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The scheduler will not run it. None: not now."""

    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Bounced:
    """It was sent, and its runner did not let it in; the slot is given back."""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """What was sent has been answered, or will not be; the slot is given back."""

    outcome: Outcome
    app: AppRetries = SILENT
    """What its app says now of retries: it may not have said so when the job was submitted."""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Its client wants it no more."""


Event: TypeAlias = (
    Submitted | Recovered | Saved | NotSaved | Granted | Refused | Bounced | AttemptEnded | CancelAsked
)

# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Make this record durable, after a pause; `Saved` or `NotSaved` follows."""

    record: Record
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell who handed it in, or asked for its end, that this is durable; of a job, that it was refused if it was."""

    record: Record


@dataclass(frozen=True, slots=True)
class Wait:
    """Let it wait for a runner, after a pause; `Granted` or `Refused` follows."""

    after_s: float = 0.0
    freed: bool = False
    """Its last attempt may go on although nobody hears of it: have that stopped, and wait until its slot is free."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Let it wait no more."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send it to the runner that has the slot; `Bounced` or `AttemptEnded` follows."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Release the slot: nothing is sent."""


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """Cancel what was sent, at whichever runner; its answer still comes, unless a router sent it that is gone."""


@dataclass(frozen=True, slots=True)
class Finish:
    """It is over, and the disk says so: tell everybody, and forget it."""


Action: TypeAlias = Save | Acknowledge | Wait | Withdraw | Send | GiveBack | StopAttempt | Finish


@dataclass(slots=True)
class Job:
    """One job. Read its fields, change it through `handle` alone."""

    request: RequestId
    rules: RetryRules = DEFAULT_RULES
    attempts: int = 0
    """How many have been begun; of what is on the disk, the next may already be counted."""
    failures: dict[Condition, int] = field(default_factory=dict)
    cancel_asked: bool = False
    state: JobState = "new"
    outcome: Outcome | None = None
    """How it ends; None: that is not known yet."""
    _cancel_saved: bool = False

    def handle(self, event: Event) -> list[Action]:
        """Apply *event*; return what to do, in order."""
        match event:
            case Submitted():
                return self._submit()
            case Recovered():
                return self._recover(event)
            case Saved(record):
                return self._saved(record)
            case NotSaved(record):
                return self._not_saved(record)
            case CancelAsked():
                return self._cancel()
            case Granted() | Refused() | Bounced() | AttemptEnded():
                return self._hear(event)
            case _:
                assert_never(event)

    # --- what becomes of an attempt --------------------------------------------------------------

    def _hear(self, event: Granted | Refused | Bounced | AttemptEnded) -> list[Action]:
        match event:
            case Granted():
                return self._grant()
            case Refused(outcome):
                if self.state != "waiting":
                    return []  # it was withdrawn in between
                return [Wait(AGAIN_S)] if outcome is None else self._end(outcome)
            case Bounced():
                assert self.state == "running"
                self.attempts -= 1
                return self._wait_again(Wait())
            case AttemptEnded(outcome, app):
                assert self.state == "running"
                return self._attempt_ended(outcome, app, rest_s=pause_s(self.attempts))
            case _:
                assert_never(event)

    def _grant(self) -> list[Action]:
        if self.state != "waiting":
            return [GiveBack()]  # it was withdrawn in between
        self.state = "starting"
        self.attempts += 1
        return [Save("attempt")]

    def _attempt_ended(self, outcome: Outcome, app: AppRetries, *, rest_s: float) -> list[Action]:
        if self.cancel_asked and outcome.status == CANCELLED.status:
            return self._end(CANCELLED)
        if not retries(outcome, Tried(self.attempts, self.failures), self.rules, app):
            return self._end(outcome)
        if (condition := outcome.failed_by) is not None:
            self.failures[condition] = self.failures.get(condition, 0) + 1
        return self._wait_again(Wait(rest_s, freed=True))

    # --- what becomes of a record ----------------------------------------------------------------

    def _saved(self, record: Record) -> list[Action]:
        match record:
            case "job":
                assert self.state == "saving"
                return [Acknowledge("job"), *self._wait(Wait())]
            case "attempt":
                assert self.state == "starting"
                if self.cancel_asked:
                    return [GiveBack(), *self._end(CANCELLED)]
                self.state = "running"
                return [Send()]
            case "retry":
                return []
            case "cancel":
                # One that was written again comes late when the end, which says the same, was faster.
                self._cancel_saved = True
                return [] if self.state in ENDED else [Acknowledge("cancel")]
            case "end":
                return self._finish()
            case _:
                assert_never(record)

    def _not_saved(self, record: Record) -> list[Action]:
        match record:
            case "job":
                assert self.state == "saving"
                self.state = "refused"
                return [Acknowledge("job")]
            case "attempt":
                assert self.state == "starting"
                self.attempts -= 1
                return [GiveBack(), *self._wait(Wait(AGAIN_S))]
            case "retry":
                return []
            case "cancel":
                # The end of the job, which is about to be saved, says the same.
                return [] if self.outcome is not None else [Save("cancel", AGAIN_S)]
            case "end":
                return [Save("end", AGAIN_S)]
            case _:
                assert_never(record)

    # --- steps -----------------------------------------------------------------------------------

    def _submit(self) -> list[Action]:
        assert self.state == "new"
        self.state = "saving"
        return [Save("job")]

    def _recover(self, event: Recovered) -> list[Action]:
        assert self.state == "new"
        if not event.dispatched:
            return self._wait(Wait(freed=self.attempts > 0))
        self.state = "running"
        stop: list[Action] = [StopAttempt()] if self.cancel_asked else []
        # It has its old place, and a restart took its time.
        return [*stop, *self._attempt_ended(LOST, event.app, rest_s=0.0)]

    def _cancel(self) -> list[Action]:
        if self._cancel_saved and self.outcome is None:
            return [Acknowledge("cancel")]
        if self.cancel_asked or self.state not in ("waiting", "starting", "running"):
            return []
        self.cancel_asked = True
        if self.state == "waiting":
            return [Withdraw(), *self._end(CANCELLED)]
        return [Save("cancel"), StopAttempt()] if self.state == "running" else [Save("cancel")]

    def _wait(self, wait: Wait) -> list[Action]:
        if self.cancel_asked:
            return self._end(CANCELLED)
        self.state = "waiting"
        return [wait]

    def _wait_again(self, wait: Wait) -> list[Action]:
        return self._end(CANCELLED) if self.cancel_asked else [Save("retry"), *self._wait(wait)]

    def _end(self, outcome: Outcome) -> list[Action]:
        self.state, self.outcome = "ending", outcome
        return [Save("end")]

    def _finish(self) -> list[Action]:
        assert self.state == "ending"
        assert self.outcome is not None
        self.state = ended_state(self.outcome)
        told: list[Action] = [Acknowledge("cancel")] if self.cancel_asked and not self._cancel_saved else []
        return [*told, Finish()]


def ended_state(outcome: Outcome) -> JobState:
    """Return the terminal state that *outcome* is."""
    if outcome == CANCELLED:
        return "cancelled"
    return "completed" if outcome.status < 400 else "failed"
