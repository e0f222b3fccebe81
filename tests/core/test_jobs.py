"""A job in arbitrary histories: a disk that refuses, runners that bounce and break, cancellations, and crashes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core import jobs
from falctl.core.jobs import (
    AGAIN_S,
    CANCELLED,
    ENDED,
    Acknowledge,
    AttemptEnded,
    Bounced,
    CancelAsked,
    Finish,
    GiveBack,
    Granted,
    Job,
    NotSaved,
    Record,
    Recovered,
    Refused,
    Save,
    Saved,
    Send,
    StopAttempt,
    Submitted,
    Wait,
    Withdraw,
)
from falctl.core.retries import ATTEMPTS_MAX, AppRetries, Condition, Outcome, RetryRules
from falctl.core.types import RequestId

WELL = Outcome(200)
OUTCOMES = (WELL, Outcome(422), Outcome(500), Outcome(503), Outcome(504), jobs.LOST, CANCELLED)


@dataclass
class Disk:
    """What is durable of one job."""

    there: bool = False
    attempts: int = 0
    failures: dict[Condition, int] = field(default_factory=dict)
    dispatched: bool = False
    cancel_asked: bool = False
    end: Outcome | None = None


@dataclass
class World:
    """Plays disk, scheduler, runner and clients to one job, and knows what it has promised."""

    rules: RetryRules = field(default_factory=RetryRules)
    disk: Disk = field(default_factory=Disk)
    job: Job = field(init=False)
    saves: list[tuple[Record, int, dict[Condition, int]]] = field(default_factory=list)
    stands: bool = False
    slot: bool = False
    sent: bool = False
    orphan: bool = False
    """An attempt goes on of which nobody hears any more."""
    acknowledged: bool = False
    cancel_promised: bool = False
    finished: int = 0
    sent_in_all: int = 0

    def __post_init__(self) -> None:
        self.job = Job(RequestId("q"), self.rules)
        self.tell(Submitted())

    def tell(self, event: jobs.Event) -> None:
        for action in self.job.handle(event):
            self.perform(action)
        assert self.slot <= (self.job.state in ("starting", "running"))
        assert self.sent == (self.job.state == "running")
        assert not (self.job.state in ENDED and (self.stands or self.asked("end")))

    def perform(self, action: jobs.Action) -> None:
        match action:
            case Save(record):
                assert record == "retry" or not self.asked(record)
                self.saves.append((record, self.job.attempts, dict(self.job.failures)))
            case Acknowledge("job"):
                assert self.disk.there == (self.job.state == "waiting")
                self.acknowledged = self.disk.there
            case Acknowledge():
                assert self.disk.cancel_asked or self.disk.end is not None
                self.cancel_promised = True
            case Wait(freed=freed):
                assert not self.slot
                self.stands, self.orphan = True, self.orphan and not freed
            case Withdraw():
                assert self.stands
                self.stands = False
            case Send():
                assert self.slot
                assert not self.orphan, "nobody is at it any more"
                assert self.disk.dispatched
                assert self.disk.attempts == self.job.attempts <= ATTEMPTS_MAX, "persisted before it is sent"
                self.sent, self.sent_in_all = True, self.sent_in_all + 1
            case GiveBack():
                assert self.slot
                self.slot = False
            case StopAttempt():
                assert self.sent or self.disk.dispatched
            case Finish():
                assert self.disk.end == self.job.outcome is not None
                self.finished += 1

    # --- what may happen --------------------------------------------------------------------------

    def disk_writes(self, *, well: bool) -> None:
        if not self.saves:
            return
        save = self.saves.pop(0)
        record = save[0]
        if well:
            self.write(*save)
        self.tell(Saved(record) if well else NotSaved(record))

    def asked(self, record: Record) -> bool:
        return any(save[0] == record for save in self.saves)

    def write(self, record: Record, attempts: int, failures: dict[Condition, int]) -> None:
        disk = self.disk
        match record:
            case "job":
                disk.there = True
            case "attempt" | "retry":
                disk.attempts, disk.failures, disk.dispatched = attempts, failures, record == "attempt"
            case "cancel":
                disk.cancel_asked = True
            case "end":
                assert disk.end is None, "one end"
                disk.end = self.job.outcome

    def granted(self) -> None:
        if self.stands:
            self.stands, self.slot = False, True
            self.tell(Granted())

    def refused(self, outcome: Outcome | None) -> None:
        if self.stands:
            self.stands = False
            self.tell(Refused(outcome))

    def answered(self, outcome: Outcome | None) -> None:
        """The attempt ends; None: its runner does not let it in."""
        if self.sent:
            self.sent = self.slot = False
            self.orphan = outcome == jobs.LOST
            self.tell(Bounced() if outcome is None else AttemptEnded(outcome))

    def crashed(self, *, written: bool) -> None:
        """The router ends in the middle of a write (which reaches the disk or does not) and begins again."""
        if self.saves and written:
            self.write(*self.saves[0])
        if not self.disk.there:
            assert not self.acknowledged, "who was told its id finds it again"
            self.__init__(self.rules)  # type: ignore[misc]
            return
        assert self.disk.cancel_asked or self.disk.end is not None or not self.cancel_promised
        self.orphan = self.orphan or self.sent
        self.saves, self.stands, self.slot, self.sent = [], False, False, False
        if self.disk.end is None:
            disk = self.disk
            self.job = Job(
                RequestId("q"), self.rules, disk.attempts, dict(disk.failures), cancel_asked=disk.cancel_asked
            )
            self.tell(Recovered(disk.dispatched))

    def write_all(self) -> None:
        while self.saves:
            self.disk_writes(well=True)

    def settle(self) -> None:
        """From now on everything goes well."""
        for _ in range(20):
            self.write_all()
            self.granted()
            self.answered(WELL)

    def step(self, what: int, which: int) -> None:
        outcome = OUTCOMES[which % len(OUTCOMES)]
        match what:
            case 0 | 1:
                self.disk_writes(well=True)
            case 2:
                self.disk_writes(well=False)
            case 3 | 4:
                self.granted()
            case 5:
                self.answered(None)
            case 6 | 7:
                self.answered(outcome)
            case 8:
                self.refused(Outcome(504, "request_timeout") if which % 2 else None)
            case 9:
                self.tell(CancelAsked())
            case _:
                self.crashed(written=bool(which % 2))


steps = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 20)), max_size=60)


@given(steps)
def test_whatever_happens_it_ends_once_and_the_disk_knows_it_first(history: list[tuple[int, int]]) -> None:
    world = World()
    for what, which in history:
        world.step(what, which)
    refused = world.job.state == "refused"
    world.settle()
    if refused:
        assert not world.acknowledged
        assert not world.disk.there
        return
    assert world.disk.end is not None, "it is neither lost nor stuck"
    assert world.finished <= 1
    assert not world.slot
    assert not world.stands
    if world.cancel_promised:
        assert world.disk.cancel_asked or world.disk.end == CANCELLED


@given(st.integers(0, ATTEMPTS_MAX - 1))
def test_it_ends_well_if_fewer_routers_die_than_it_has_attempts(deaths: int) -> None:
    world = World()
    world.write_all()
    for _ in range(deaths):
        world.granted()
        world.write_all()
        world.crashed(written=True)
    world.settle()
    assert world.disk.end == WELL
    assert world.disk.attempts == deaths + 1


def test_the_tenth_broken_attempt_is_the_last() -> None:
    world = World()
    world.write_all()
    for _ in range(ATTEMPTS_MAX):
        assert world.stands
        world.granted()
        world.write_all()
        world.answered(jobs.LOST)
    world.settle()
    assert world.disk.end == jobs.LOST
    assert world.sent_in_all == ATTEMPTS_MAX


def test_a_bounce_is_no_attempt() -> None:
    world = World()
    world.write_all()
    for _ in range(3 * ATTEMPTS_MAX):
        world.granted()
        world.write_all()
        world.answered(None)
    world.settle()
    assert world.disk.end == WELL
    assert world.disk.attempts == 1


def started(world: World) -> World:
    world.write_all()
    world.granted()
    world.write_all()
    assert world.sent
    return world


def test_a_running_job_that_is_cancelled_may_still_end_well() -> None:
    world = started(World())
    world.tell(CancelAsked())
    world.answered(WELL)
    world.settle()
    assert world.disk.end == WELL
    assert world.cancel_promised


@pytest.mark.parametrize("outcome", [Outcome(499), jobs.LOST, Outcome(503)])
def test_a_cancelled_job_is_not_tried_again(outcome: Outcome) -> None:
    world = started(World())
    world.tell(CancelAsked())
    world.answered(outcome)
    world.settle()
    assert world.disk.end == CANCELLED
    assert world.job.state == "cancelled"
    assert world.sent_in_all == 1


def test_a_job_whose_attempt_is_being_persisted_is_cancelled_before_it_is_sent() -> None:
    world = World()
    world.write_all()
    world.granted()
    world.tell(CancelAsked())
    world.settle()
    assert world.sent_in_all == 0
    assert world.disk.end == CANCELLED


@pytest.mark.parametrize("bounced", [False, True])
def test_a_cancelled_job_does_not_wait_again(*, bounced: bool) -> None:
    world = World()
    world.disk_writes(well=True)
    world.granted()
    if bounced:
        world.disk_writes(well=True)
        world.tell(CancelAsked())
        world.answered(None)
    else:
        world.tell(CancelAsked())
        world.disk_writes(well=False)
    assert not world.stands
    world.settle()
    assert world.disk.end == CANCELLED


def test_a_cancellation_that_was_confirmed_survives_a_crash() -> None:
    world = started(World())
    world.tell(CancelAsked())
    world.write_all()
    assert world.cancel_promised
    world.crashed(written=False)
    world.settle()
    assert world.disk.end == CANCELLED


def test_who_asks_twice_for_its_end_is_answered_once_it_is_durable() -> None:
    job = started(World()).job
    assert job.handle(CancelAsked()) == [Save("cancel"), StopAttempt()]
    assert job.handle(CancelAsked()) == []
    assert job.handle(Saved("cancel")) == [Acknowledge("cancel")]
    assert job.handle(CancelAsked()) == [Acknowledge("cancel")]


def test_a_cancellation_that_the_disk_refused_is_told_by_the_end_if_that_is_faster() -> None:
    job = started(World()).job
    job.handle(CancelAsked())
    assert job.handle(NotSaved("cancel")) == [Save("cancel", jobs.AGAIN_S)]
    assert job.handle(AttemptEnded(WELL)) == [Save("end")]
    assert job.handle(NotSaved("cancel")) == []
    assert job.handle(Saved("end")) == [Acknowledge("cancel"), Finish()]
    assert job.handle(Saved("cancel")) == []


def test_what_was_withdrawn_gives_a_slot_back_and_hears_of_no_refusal() -> None:
    world = World()
    world.write_all()
    job = world.job
    assert job.handle(CancelAsked()) == [Withdraw(), Save("end")]
    assert job.handle(Granted()) == [GiveBack()]
    assert job.handle(Refused()) == []


def test_an_end_is_written_again_until_it_is_durable() -> None:
    world = started(World())
    world.answered(Outcome(422))
    assert world.job.handle(NotSaved("end")) == [Save("end", jobs.AGAIN_S)]
    assert world.job.handle(Saved("end")) == [Finish()]
    assert world.job.state == "failed"


def test_a_crash_while_it_rests_charges_no_second_failure() -> None:
    world = started(World(RetryRules(asked={"server_error": 1, "connection_error": 0})))
    world.answered(Outcome(503))
    world.write_all()
    world.crashed(written=False)
    assert world.job.failures == {"server_error": 1}
    world.settle()
    assert world.disk.end == WELL


def test_a_cancelled_attempt_of_a_dead_router_is_stopped() -> None:
    job = Job(RequestId("q"), attempts=1, cancel_asked=True)
    assert job.handle(Recovered(dispatched=True)) == [StopAttempt(), Save("end")]


def test_an_attempt_that_outlives_two_routers_is_not_joined_by_another() -> None:
    world = started(World())
    world.crashed(written=False)
    world.write_all()  # the disk now says that it waits
    world.orphan = True  # and this router ends before its runner has let it go
    world.crashed(written=False)
    world.granted()
    world.write_all()
    assert world.sent


def test_a_failed_attempt_rests_and_one_that_a_restart_broke_does_not() -> None:
    assert started(World()).job.handle(AttemptEnded(Outcome(503))) == [Save("retry"), Wait(0.25, freed=True)]
    job = Job(RequestId("q"), attempts=1)
    assert job.handle(Recovered(dispatched=True)) == [Save("retry"), Wait(0.0, freed=True)]


def test_a_retry_that_is_not_noted_is_made_all_the_same() -> None:
    world = started(World())
    world.answered(Outcome(503))
    world.disk_writes(well=False)
    world.settle()
    assert world.disk.end == WELL
    assert world.disk.failures == {"server_error": 1}


def test_what_has_ended_cannot_be_cancelled() -> None:
    world = started(World())
    world.answered(WELL)
    assert world.job.handle(CancelAsked()) == []
    world.settle()
    assert world.job.handle(CancelAsked()) == []
    assert world.job.state == "completed"


def test_a_forced_retry_charges_no_condition() -> None:
    world = started(World())
    world.answered(Outcome(500, needs_retry=True))
    assert world.stands
    assert world.job.failures == {}


SKIPS = AppRetries(skips=frozenset({"connection_error"}))


def test_the_app_is_asked_when_an_attempt_ends_not_when_the_job_is_submitted() -> None:
    job = started(World()).job
    assert job.handle(AttemptEnded(jobs.LOST, SKIPS)) == [Save("end")]
    job = started(World()).job
    assert job.handle(AttemptEnded(jobs.LOST))[0] == Save("retry")
    once = AppRetries({"connection_error": 1})
    job = Job(RequestId("q"), attempts=2, failures={"connection_error": 1})
    assert job.handle(Recovered(dispatched=True, app=once)) == [Save("end")]
    job = Job(RequestId("q"), attempts=1)
    assert job.handle(Recovered(dispatched=True, app=once))[0] == Save("retry")


def waiting() -> Job:
    job = Job(RequestId("q"))
    job.handle(Submitted())
    assert job.handle(Saved("job")) == [Acknowledge("job"), Wait()]
    return job


def test_a_refusal_for_good_ends_it_and_any_other_lets_it_ask_again() -> None:
    assert waiting().handle(Refused(None)) == [Wait(AGAIN_S)]
    assert waiting().handle(Refused(Outcome(504, "request_timeout"))) == [Save("end")]


def test_what_was_decided_of_a_job_that_waits_no_more_does_not_count() -> None:
    for late, actions in ((Refused(None), []), (Granted(), [GiveBack()])):
        job = waiting()
        job.handle(Granted())
        assert job.state == "starting"
        assert job.handle(late) == actions
