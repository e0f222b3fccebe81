"""
The request state machine: events in, actions out, one owner, no locks.

A request waits in the one central queue until a runner has a free slot for it (late binding); the policy says
which request and which runner. The driver performs the returned actions in order, with no ``await`` between
`Scheduler.handle` and the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from falctl.core.events import (
    Action,
    Arrived,
    Bounced,
    Cancelled,
    Dispatch,
    Drains,
    Event,
    HintsChanged,
    Refuse,
    RefuseCode,
    Released,
    RunnerDown,
    RunnerDrains,
    RunnerUp,
    Tick,
)
from falctl.core.fleet import Fleet, Runner
from falctl.core.policies.base import Policy
from falctl.core.queue import Waiting, WaitingQueue
from falctl.core.types import Epoch, RequestId, RunnerId

BOUNCES_MAX: Final = 10
"""A request bounced this often is refused: fal's own bound on attempts (fal-client 1.0.3, MAX_ATTEMPTS)."""

_GAP_WEIGHT: Final = 0.2
"""Weight of the newest gap between dispatches in its moving average, which Retry-After is made from."""


@dataclass(slots=True)
class Scheduler:
    """
    Decides where every request goes. It holds the only copy of what waits and what is in flight.

    *queue_max*: how many requests may wait. *policy* may be exchanged at any time between two events.
    """

    policy: Policy
    queue_max: int
    fleet: Fleet = field(default_factory=Fleet)
    queue: WaitingQueue = field(default_factory=WaitingQueue)
    _in_flight: dict[RequestId, tuple[RunnerId, Epoch, Waiting]] = field(default_factory=dict)
    _arrivals: int = 0
    _dispatches: int = 0
    _draining: bool = False
    _gap_s: float = 1.0
    _dispatched_at: float | None = None

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Apply *event* at monotonic instant *now*; return what to do, in order."""
        refused = self._apply(event, now)
        return [*refused, *self._dispatch(now), *self._give_up()]

    def check(self) -> None:
        """Assert every invariant; called after each event in simulation."""
        self.queue.check()
        for request, (runner, epoch, _) in self._in_flight.items():
            assert request not in self.queue
            view = self.fleet.runners[runner]
            assert view.epoch == epoch
            assert request in view.in_use
        for view in self.fleet.runners.values():
            mine = sum(1 for r, _, _ in self._in_flight.values() if r == view.runner)
            assert mine <= len(view.in_use)
            assert view.runner not in self.fleet.returning
        assert not (self._draining and len(self.queue)), "a draining fleet must have refused what waited"

    def _apply(self, event: Event, now: float) -> list[Action]:
        match event:
            case Arrived():
                return self._arrive(event, now)
            case Cancelled(request):
                self.queue.pop(request)
            case Released() | Bounced() | HintsChanged() | RunnerDrains():
                return self._hear(event)
            case RunnerUp():
                self._up(event)
            case RunnerDown(runner, returns):
                self._down(runner, returns=returns)
            case Drains():
                self._draining = True
                return self._refuse_all("draining")
            case Tick():
                pass
            case _:
                assert_never(event)
        return []

    def _arrive(self, event: Arrived, now: float) -> list[Action]:
        if self._draining:
            return [self._refusal(event.request, "draining")]
        if len(self.queue) >= self.queue_max:
            return [self._refusal(event.request, "queue_full")]
        self._arrivals += 1
        self.queue.add(Waiting(event.request, event.wanted, event.client, now, self._arrivals))
        return []

    def _hear(self, event: Released | Bounced | HintsChanged | RunnerDrains) -> list[Action]:
        view = self.fleet.runners.get(event.runner)
        if view is None or view.epoch != event.epoch:
            return []  # news of an incarnation that is gone
        match event:
            case Released(request):
                self._in_flight.pop(request, None)
                if view.in_use.pop(request, _NOT_THERE) is not _NOT_THERE:
                    view.blocked = False
            case Bounced(request):
                view.blocked = True
                view.in_use.pop(request, None)
                return self._return_to_queue(request)
            case HintsChanged():
                view.hints = event.hints
            case RunnerDrains():
                view.accepting = False
            case _:
                assert_never(event)
        return []

    def _return_to_queue(self, request: RequestId) -> list[Action]:
        entry = self._in_flight.pop(request, None)
        if entry is None:
            return []
        waiting = replace(entry[2], attempts=entry[2].attempts + 1)
        if waiting.attempts >= BOUNCES_MAX:
            return [self._refusal(request, "bounced_too_often")]
        if self._draining:
            return [self._refusal(request, "draining")]
        self.queue.add(waiting)
        return []

    def _up(self, event: RunnerUp) -> None:
        known = self.fleet.runners.get(event.runner)
        if known is None or known.epoch != event.epoch:
            self._down(event.runner, returns=False)
            known = Runner(event.runner, event.epoch, event.slots, event.hints)
            self.fleet.runners[event.runner] = known
        self.fleet.returning.discard(event.runner)
        known.hints, known.accepting, known.blocked = event.hints, True, False
        ours = {q for q, (r, _, _) in self._in_flight.items() if r == event.runner}
        known.in_use = {q: known.in_use.get(q) for q in (*event.executing, *ours)}

    def _down(self, runner: RunnerId, *, returns: bool) -> None:
        self.fleet.runners.pop(runner, None)
        self.fleet.forget(runner)
        (self.fleet.returning.add if returns else self.fleet.returning.discard)(runner)
        for request in [q for q, (r, _, _) in self._in_flight.items() if r == runner]:
            del self._in_flight[request]

    def _dispatch(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while self.queue and (choice := self.policy.choose(self.queue, self.fleet, now=now)) is not None:
            actions.append(self._send(choice.request, choice.runner, choice.reason, now))
        return actions

    def _send(self, request: RequestId, runner: RunnerId, reason: str, now: float) -> Dispatch:
        waiting = self.queue.pop(request)
        view = self.fleet.runners[runner]
        assert waiting is not None, "a policy chose a request that does not wait"
        assert view.free_slots > 0, "a policy chose a runner without a free slot"
        hint = waiting.hint
        warm = hint is not None and self.fleet.warm(hint, view)
        self._dispatches += 1
        view.dispatched_order = self._dispatches
        view.in_use[request] = hint
        self._in_flight[request] = (runner, view.epoch, waiting)
        if hint is not None:
            self.fleet.serve(hint, runner)
        self._learn_gap(now)
        return Dispatch(request, runner, view.epoch, warm, now - waiting.arrived_at, reason)

    def _learn_gap(self, now: float) -> None:
        if self._dispatched_at is not None and self.queue:
            self._gap_s += _GAP_WEIGHT * (now - self._dispatched_at - self._gap_s)
        self._dispatched_at = now

    def _give_up(self) -> list[Action]:
        """Refuse what waits when no runner is up and none will be."""
        if self.queue and not self.fleet.runners and not self.fleet.returning:
            return self._refuse_all("no_runner")
        return []

    def _refuse_all(self, code: RefuseCode) -> list[Action]:
        requests = [waiting.request for waiting in self.queue]
        for request in requests:
            self.queue.pop(request)
        return [self._refusal(request, code) for request in requests]

    def _refusal(self, request: RequestId, code: RefuseCode) -> Refuse:
        return Refuse(request, code, retry_after_s=max(self._gap_s, 1.0))


_NOT_THERE: Final = object()
