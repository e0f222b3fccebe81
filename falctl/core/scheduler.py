"""
The request state machine: events in, actions out, one owner, no locks.

A request waits in the one central queue until a runner has a free slot for it (late binding); the policy says
which request and which runner, and which model is loaded where. The driver performs the returned actions in order,
with no ``await`` between `Scheduler.handle` and the last of them. `falctl.core.bookkeeping` keeps the policy's
knowledge: what is here, what it costs, what is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from falctl.core.decisions import Decisions
from falctl.core.ended import EndedRing
from falctl.core.events import (
    Action,
    Arrived,
    Bounced,
    Cancelled,
    Dispatch,
    Drains,
    Event,
    HintsChanged,
    Load,
    LoadEnded,
    Refuse,
    RefuseCode,
    Released,
    RunnerDown,
    RunnerDrains,
    RunnerUp,
    Tick,
)
from falctl.core.fair import FairShare
from falctl.core.fleet import Fleet, Loaded, Runner, Running
from falctl.core.learning import learn_release
from falctl.core.policies.base import Execute, LoadModel, Move, Policy, State
from falctl.core.policies.explain import plain
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
    state: State = field(default_factory=State)
    fair: FairShare = field(default_factory=FairShare)
    decisions: Decisions = field(default_factory=Decisions)
    ended: EndedRing = field(default_factory=EndedRing)
    _in_flight: dict[RequestId, tuple[RunnerId, Epoch, Waiting]] = field(default_factory=dict)
    _arrivals: int = 0
    _dispatches: int = 0
    _draining: bool = False
    _gap_s: float = 1.0
    _dispatched_at: float | None = None

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Apply *event* at monotonic instant *now*; return what to do, in order."""
        refused = self._apply(event, now)
        actions = [*refused, *self._late(now), *self._decide(now), *self._give_up()]
        for action in actions:
            if isinstance(action, Refuse):
                self.decisions.refused(action, now=now)
        return actions

    def check(self) -> None:
        """Assert every invariant; called after each event in simulation."""
        self.state.queue.check()
        self.decisions.check()
        for request, (runner, epoch, _) in self._in_flight.items():
            assert request not in self.state.queue
            view = self.state.fleet.runners[runner]
            assert view.epoch == epoch
            assert request in view.in_use
        for view in self.state.fleet.runners.values():
            mine = sum(1 for r, _, _ in self._in_flight.values() if r == view.runner)
            assert mine <= len(view.in_use)
            assert view.runner not in self.state.fleet.returning
            assert len(view.loading) <= 1, "one load of a runner at a time"
            assert view.hints is None or not view.hints & view.loading.keys(), "warm for what is on its way"
        assert not (self._draining and self.state.queue), "a draining fleet must have refused what waited"

    @property
    def queue(self) -> WaitingQueue:
        """Return what waits."""
        return self.state.queue

    @property
    def fleet(self) -> Fleet:
        """Return the runners as they are known."""
        return self.state.fleet

    @property
    def in_flight(self) -> int:
        """Return how many requests are dispatched and not released."""
        return len(self._in_flight)

    # --- events ----------------------------------------------------------------------------------

    def _apply(self, event: Event, now: float) -> list[Action]:
        match event:
            case Arrived():
                return self._arrive(event, now)
            case Cancelled(request):
                if self.state.queue.pop(request) is not None:
                    self.decisions.happened(request, "cancelled", now=now)
            case Released() | LoadEnded() | Bounced() | HintsChanged() | RunnerDrains():
                return self._hear(event, now)
            case RunnerUp():
                self._up(event, now)
            case RunnerDown(runner, returns):
                self._down(runner, now, returns=returns)
            case Drains():
                self._draining = True
                return self._refuse_all("draining")
            case Tick():
                pass
            case _:
                assert_never(event)
        return []

    def _arrive(self, event: Arrived, now: float) -> list[Action]:
        if self._draining or len(self.state.queue) >= self.queue_max:
            self.decisions.arrived(event, due=now, now=now)
            return [self._refusal(event.request, "draining" if self._draining else "queue_full")]
        self._arrivals += 1
        costs, wanted = self.state.costs, event.wanted
        if wanted is not None:
            if event.size_bytes:
                costs.declare(wanted.hint, event.size_bytes)
            self.state.demand.arrived(wanted.hint, event.client, now=now)
        exec_s = costs.mean_exec.value if wanted is None else costs.exec_s(wanted.hint)
        share_s = exec_s / max(len(self.state.fleet.runners), 1)
        due = self.fair.due(event.client, event.priority, share_s, now=now)
        waiting = Waiting(
            event.request, wanted, event.client, now, self._arrivals, due=due, start_by=event.start_by
        )
        self.state.queue.add(waiting)
        self.decisions.arrived(event, due=due, now=now)
        return []

    def _hear(
        self, event: Released | LoadEnded | Bounced | HintsChanged | RunnerDrains, now: float
    ) -> list[Action]:
        view = self.state.fleet.runners.get(event.runner)
        if view is None or view.epoch != event.epoch:
            return []  # news of an incarnation that is gone
        match event:
            case Released():
                self._release(event, view, now)
            case LoadEnded():
                self._loaded(event, view, now)
            case Bounced(request):
                view.blocked = True
                view.in_use.pop(request, None)
                self.decisions.happened(request, "bounced", now=now, runner=event.runner)
                return self._return_to_queue(request)
            case HintsChanged():
                # What a load job brings counts once that has ended: the board tells of it a moment before.
                coming = view.loading.keys() | view.leaving
                view.hints = None if event.hints is None else event.hints - coming
            case RunnerDrains():
                view.accepting = False
            case _:
                assert_never(event)
        return []

    def _release(self, event: Released, view: Runner, now: float) -> None:
        entry = self._in_flight.pop(event.request, None)
        running = view.in_use.pop(event.request, None)
        if running is not None:
            view.blocked = False
            if entry is not None:
                self.decisions.ended(event, now=now)
                self.ended.ended(event, entry[2], view, running, self.state.costs)
            learn_release(self.state.costs, view, running, event, now=now)

    def _loaded(self, event: LoadEnded, view: Runner, now: float) -> None:
        if view.loading.pop(event.hint, None) is None:
            return
        view.leaving = frozenset()
        self.decisions.load_ended(event, now=now)
        if event.ok:
            self.ended.loaded(event.hint, event.load_s)
            self.state.costs.loaded(event.hint, event.tier, event.load_s)
            self.state.fleet.unloadable.discard(event.hint)
            if view.hints is not None:
                view.hints |= {event.hint}
            view.loaded = {h: v for h, v in view.loaded.items() if view.hints and h in view.hints}
            view.loaded[event.hint] = Loaded(now, event.load_s)
        else:
            self.state.fleet.unloadable.add(event.hint)

    def _return_to_queue(self, request: RequestId) -> list[Action]:
        entry = self._in_flight.pop(request, None)
        if entry is None:
            return []
        waiting = replace(entry[2], attempts=entry[2].attempts + 1)
        if waiting.attempts >= BOUNCES_MAX:
            return [self._refusal(request, "bounced_too_often")]
        if self._draining:
            return [self._refusal(request, "draining")]
        self.state.queue.add(waiting)
        return []

    def _up(self, event: RunnerUp, now: float) -> None:
        known = self.state.fleet.runners.get(event.runner)
        if known is None or known.epoch != event.epoch:
            self._down(event.runner, now, returns=False)
            known = Runner(event.runner, event.epoch, event.slots, event.hints, event.caps)
            self.state.fleet.runners[event.runner] = known
        self.state.fleet.returning.discard(event.runner)
        known.hints, known.caps, known.accepting, known.blocked = event.hints, event.caps, True, False
        known.loading = {hint: known.loading.get(hint, now) for hint in event.loading}
        if known.hints is not None:
            known.hints -= known.loading.keys()
        known.leaving = frozenset()
        self.decisions.loads_known(event.runner, event.loading, now=now)
        ours = {q for q, (r, _, _) in self._in_flight.items() if r == event.runner}
        unknown = Running(None, now)
        known.in_use = {q: known.in_use.get(q, unknown) for q in (*event.executing, *ours)}

    def _down(self, runner: RunnerId, now: float, *, returns: bool) -> None:
        fleet = self.state.fleet
        fleet.runners.pop(runner, None)
        fleet.forget(runner)
        (fleet.returning.add if returns else fleet.returning.discard)(runner)
        for request in [q for q, (r, _, _) in self._in_flight.items() if r == runner]:
            del self._in_flight[request]
            self.decisions.happened(request, "lost", now=now, runner=runner)
        self.decisions.loads_known(runner, (), now=now)

    # --- actions ---------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while self.state.queue and (move := self.policy.choose(self.state, now=now)) is not None:
            actions.append(self._perform(move, now))
        return actions

    def _perform(self, move: Move, now: float) -> Action:
        match move:
            case Execute():
                return self._send(move, now)
            case LoadModel():
                return self._load(move, now)
            case _:
                assert_never(move)

    def _send(self, move: Execute, now: float) -> Dispatch:
        fleet = self.state.fleet
        candidates = move.candidates or plain(self.state, move)
        waiting = self.state.queue.pop(move.request)
        view = fleet.runners[move.runner]
        assert waiting is not None, "a policy chose a request that does not wait"
        assert view.free_slots > 0, "a policy chose a runner without a free slot"
        hint = waiting.hint
        warm = hint is not None and fleet.warm(hint, view)
        self._dispatches += 1
        view.dispatched_order = self._dispatches
        view.in_use[move.request] = Running(hint, now, warm)
        self._in_flight[move.request] = (move.runner, view.epoch, waiting)
        if hint is not None:
            view.used[hint] = self._dispatches
            fleet.serve(hint, move.runner)
        self._learn_gap(now)
        dispatch = Dispatch(
            move.request, move.runner, view.epoch, warm, now - waiting.arrived_at, move.reason
        )
        dispatch = _with_load(dispatch, waiting, view)
        self.decisions.dispatched(dispatch, candidates, now=now)
        return dispatch

    def _load(self, move: LoadModel, now: float) -> Load:
        view = self.state.fleet.runners[move.runner]
        candidates = move.candidates or plain(self.state, move)
        assert view.can_load, "a policy chose a runner that cannot load now"
        assert view.hints is not None
        assert move.hint not in view.hints
        assert not any(view.executes(victim) for victim in move.evict), "a victim executes"
        view.leaving = frozenset(move.evict)
        view.hints -= view.leaving
        view.loading[move.hint] = now
        load = Load(move.runner, view.epoch, move.hint, move.evict, move.reason)
        head, count = self.state.queue.head(move.hint), self.state.queue.count(move.hint)
        self.decisions.load_began(
            load, candidates, now=now, request=None if head is None else head.request, waiting=count
        )
        return load

    def _late(self, now: float) -> list[Action]:
        """Refuse what should have started by now."""
        late = self.state.queue.late(now)
        for request in late:
            self.state.queue.pop(request)
        return [self._refusal(request, "start_timeout") for request in late]

    def _learn_gap(self, now: float) -> None:
        if self._dispatched_at is not None and self.state.queue:
            self._gap_s += _GAP_WEIGHT * (now - self._dispatched_at - self._gap_s)
        self._dispatched_at = now

    def _give_up(self) -> list[Action]:
        """Refuse what waits when no runner is up and none will be."""
        fleet = self.state.fleet
        if self.state.queue and not fleet.runners and not fleet.returning:
            return self._refuse_all("no_runner")
        return []

    def _refuse_all(self, code: RefuseCode) -> list[Action]:
        requests = [waiting.request for waiting in self.state.queue]
        for request in requests:
            self.state.queue.pop(request)
        return [self._refusal(request, code) for request in requests]

    def _refusal(self, request: RequestId, code: RefuseCode) -> Refuse:
        return Refuse(request, code, retry_after_s=max(self._gap_s, 1.0))


def _with_load(dispatch: Dispatch, waiting: Waiting, view: Runner) -> Dispatch:
    """Return *dispatch* with its share in the load job that ended while its request waited, if one did."""
    loaded = None if waiting.hint is None else view.loaded.get(waiting.hint)
    if loaded is None or loaded.at < waiting.arrived_at:
        return dispatch
    first, loaded.used = not loaded.used, True
    load_s = min(loaded.load_s, loaded.at - waiting.arrived_at)
    return replace(dispatch, cache="disk" if first else "join", load_s=load_s)
