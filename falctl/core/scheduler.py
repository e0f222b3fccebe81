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
from falctl.core.pace import Pace
from falctl.core.policies.base import Execute, LoadModel, Move, Policy, State
from falctl.core.policies.explain import plain
from falctl.core.queue import Waiting, WaitingQueue
from falctl.core.types import Epoch, Hint, RequestId, RunnerId, Wanted

BOUNCES_MAX: Final = 10
"""A request bounced this often is refused: fal's own bound on attempts (fal-client 1.0.3, MAX_ATTEMPTS)."""


@dataclass(slots=True)
class Scheduler:
    """
    Decides where every request goes. It holds the only copy of what waits and what is in flight.

    *queue_max*: how many requests may wait; *client_max*: how many of one client, 0 for as many. *policy* may be
    exchanged at any time between two events.
    """

    policy: Policy
    queue_max: int
    client_max: int = 0
    state: State = field(default_factory=State)
    fair: FairShare = field(default_factory=FairShare)
    pace: Pace = field(default_factory=Pace)
    decisions: Decisions = field(default_factory=Decisions)
    ended: EndedRing = field(default_factory=EndedRing)
    _in_flight: dict[RequestId, tuple[RunnerId, Epoch, Waiting]] = field(default_factory=dict)
    _arrivals: int = 0
    _dispatches: int = 0
    _draining: bool = False

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Apply *event* at monotonic instant *now*; return what to do, in order."""
        refused = self._apply(event, now)
        refused += [*self._late(now), *self._too_large(event)]
        actions = [*refused, *self._decide(now), *self._give_up()]
        self.pace.watch(waiting=bool(self.state.queue), now=now)
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
        if not isinstance(event, Arrived | Released | LoadEnded | HintsChanged):
            self.state.changes.all = True
        match event:
            case Arrived():
                return self._arrive(event, now)
            case Cancelled(request):
                if self._drop(request, now):
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
        refusal = Refuse(event.request, "draining") if self._draining else self._over_a_bound(event, now)
        if refusal is not None:
            self.decisions.arrived(event, due=now, now=now)
            return [refusal]
        self._arrivals += 1
        costs, wanted = self.state.costs, event.wanted
        if wanted is not None:
            if event.size_bytes:
                costs.declare(wanted.hint, event.size_bytes)
            self.state.demand.arrived(wanted.hint, event.client, now=now)
        exec_s = costs.mean_exec.value if wanted is None else costs.exec_s(wanted.hint)
        share_s = exec_s / max(sum(runner.slots for runner in self.state.fleet.runners.values()), 1)
        due = self.fair.due(event.client, event.priority, share_s, now=now)
        waiting = Waiting(
            event.request,
            wanted,
            event.client,
            now,
            self._arrivals,
            due=due,
            start_by=event.start_by,
            priority=event.priority,
            share_s=share_s,
        )
        self.state.queue.add(waiting)
        self.state.changes.note(waiting.hint, wanted=True)
        self.decisions.arrived(event, due=due, now=now)
        return []

    def _over_a_bound(self, event: Arrived, now: float) -> Refuse | None:
        queue, client = self.state.queue, event.client if event.bounded else ""
        if event.bounded and len(queue) >= self.queue_max:
            return Refuse(event.request, "queue_full", self.place_s(now=now), len(queue))
        if client and self.client_max and queue.count_of(client) >= self.client_max:
            after_s = self.place_s(now=now) / self.pace.share(client, clients=queue.clients)
            return Refuse(event.request, "client_queue_full", after_s, queue.count_of(client))
        return None

    def place_s(self, *, now: float) -> float:
        """Return in how many seconds the next place in the queue should turn free."""
        slots = sum(runner.slots for runner in self.state.fleet.runners.values())
        return self.pace.gap_s(prior_s=self.state.costs.mean_exec.value / max(slots, 1), now=now)

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
                return self._return_to_queue(request, now)
            case HintsChanged():
                view.hints = view.counted(event.hints)
                self.state.fleet.found(view.hints or ())
                self.state.changes.note(None, view.runner)
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
            self.state.changes.note(running.hint, view.runner)
            if entry is not None:
                self.decisions.ended(event, now=now)
                self.ended.ended(event, entry[2], view, running, self.state.costs)
            learn_release(self.state.costs, view, running, event, now=now)
            if event.exec_s is not None and running.hint is not None and view.lacks(running):
                self.state.fleet.missed(running.hint)

    def _loaded(self, event: LoadEnded, view: Runner, now: float) -> None:
        if view.loading.pop(event.hint, None) is None:
            return
        view.leaving = frozenset()
        self.state.changes.note(event.hint, view.runner, wanted=True)
        self.decisions.load_ended(event, now=now)
        if event.ok:
            self.ended.loaded(event.hint, event.load_s)
            self.state.costs.loaded(event.hint, event.tier, event.load_s)
            self.state.fleet.found([event.hint])
            if view.hints is not None:
                view.hints |= {event.hint}
            view.loaded = {h: v for h, v in view.loaded.items() if view.hints and h in view.hints}
            view.loaded[event.hint] = Loaded(now, event.load_s)
        else:
            self.state.fleet.give_up(event.hint)
            self.state.changes.all = True

    def _return_to_queue(self, request: RequestId, now: float) -> list[Action]:
        entry = self._in_flight.pop(request, None)
        if entry is None:
            return []
        waiting = replace(entry[2], attempts=entry[2].attempts + 1)
        if waiting.attempts >= BOUNCES_MAX:
            return [Refuse(request, "bounced_too_often", self.place_s(now=now))]
        if self._draining:
            return [Refuse(request, "draining")]
        self.state.queue.add(waiting)
        return []

    def _up(self, event: RunnerUp, now: float) -> None:
        known = self.state.fleet.runners.get(event.runner)
        if known is None or known.epoch != event.epoch:
            self._down(event.runner, now, returns=False)
            known = Runner(event.runner, event.epoch, event.slots, event.hints, event.caps)
            self.state.fleet.runners[event.runner] = known
        self.state.fleet.returning.discard(event.runner)
        known.caps, known.accepting, known.blocked = event.caps, True, False
        known.loading = {hint: known.loading.get(hint, now) for hint in event.loading}
        known.leaving = frozenset()
        known.hints = known.counted(event.hints)
        self.state.fleet.found(known.hints or ())
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
            view.use(hint, self._dispatches)
            fleet.serve(hint, move.runner)
        self.state.changes.note(hint, move.runner)
        if view.hints is None:
            self.state.changes.all = True  # it is warm for something new
        if now > waiting.arrived_at:  # else it has had no place
            self.pace.leave(waiting.client, now=now)
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
        self.state.changes.note(move.hint, move.runner)
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
            self._drop(request, now)
            self.state.changes.all = True
        return [Refuse(request, "start_timeout") for request in late]

    def _drop(self, request: RequestId, now: float) -> bool:
        """Forget *request*; its client is not charged for it. Return whether it waited."""
        if (gone := self.state.queue.pop(request)) is None:
            return False
        self.pace.leave(gone.client, now=now)
        self.fair.refund(gone.client, gone.priority, gone.share_s)
        return True

    def _too_large(self, event: Event) -> list[Action]:
        """Refuse what fits no card, if *event* can have brought that about."""
        match event:
            case Arrived(wanted=Wanted(hint)):
                hints: list[Hint | None] = [hint]
            case RunnerUp() | RunnerDown():
                hints = list(self.state.queue.hints())
            case _:
                return []
        return [action for hint in hints if hint is not None for action in self._refuse_unfit(hint)]

    def _refuse_unfit(self, hint: Hint) -> list[Action]:
        fleet, size_bytes = self.state.fleet, self.state.costs.size_bytes(hint)
        if size_bytes is None or not fleet.runners or fleet.fits(hint, size_bytes):
            return []
        requests = [waiting.request for waiting in self.state.queue if waiting.hint == hint]
        for request in requests:
            self.state.queue.pop(request)
        return [Refuse(request, "model_too_large", size_bytes=size_bytes) for request in requests]

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
        return [Refuse(request, code) for request in requests]


def _with_load(dispatch: Dispatch, waiting: Waiting, view: Runner) -> Dispatch:
    """Return *dispatch* with its share in the load job that ended while its request waited, if one did."""
    loaded = None if waiting.hint is None else view.loaded.get(waiting.hint)
    if loaded is None or loaded.at < waiting.arrived_at:
        return dispatch
    first, loaded.used = not loaded.used, True
    load_s = min(loaded.load_s, loaded.at - waiting.arrived_at)
    return replace(dispatch, cache="disk" if first else "join", load_s=load_s)
