"""
The request state machine: events in, actions out, one owner, no locks.

A request waits in the one central queue until a runner has a free slot for it (late binding); the policy says
which request and which runner, and which model is loaded where. The driver performs the returned actions in order,
with no ``await`` between `Scheduler.handle` and the last of them. `falctl.core.learning` keeps the policy's
knowledge: what is here, what it costs, what is wanted.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field, replace
from typing import Final, assert_never

from falctl.core.decisions import Decisions
from falctl.core.ended import EndedRing
from falctl.core.entrance import Entrance
from falctl.core.events import (
    Action,
    Arrived,
    Behind,
    Bounced,
    Cancelled,
    Dispatch,
    Drains,
    Event,
    Failure,
    HintsChanged,
    Load,
    LoadEnded,
    PinsChanged,
    Refuse,
    Released,
    RunnerDown,
    RunnerDrains,
    RunnerUp,
    TellWish,
    Tick,
    WishDropped,
    Wished,
)
from falctl.core.fleet import Fleet, Loaded, Runner, Running
from falctl.core.learning import learn_release, source_of
from falctl.core.policies.base import Execute, LoadModel, Move, Policy, State
from falctl.core.policies.explain import plain
from falctl.core.queue import Waiting, WaitingQueue
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.core.wishes import Wishes

NO_ROOM: Final = Failure(507, "model_too_large", "its runner has no room for its model")
"""Its own words went to the client whose request was refused so."""

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
    queue_max: InitVar[int]
    client_max: InitVar[int] = 0
    state: State = field(default_factory=State)
    entrance: Entrance = field(init=False)
    decisions: Decisions = field(default_factory=Decisions)
    ended: EndedRing = field(default_factory=EndedRing)
    wishes: Wishes = field(init=False)
    _in_flight: dict[RequestId, tuple[RunnerId, Epoch, Waiting]] = field(default_factory=dict)
    _dispatches: int = 0
    _draining: bool = False

    def __post_init__(self, queue_max: int, client_max: int) -> None:
        self.entrance = Entrance(self.state, queue_max, client_max)
        self.wishes = Wishes(self.state)

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Apply *event* at monotonic instant *now*; return what to do, in order."""
        if isinstance(event, Arrived):
            event = self.entrance.named(event)
        if self.state.refusals.expire(now=now):
            self.state.changes.all = True
        refused = self._apply(event, now)
        refused += [*self.entrance.refuse_late(now=now), *self.entrance.refuse_unfit(event)]
        wished = self.wishes.pending  # hardly ever: a decision is asked for thousands of times as often
        asked = [*self.wishes.settle(), *self._grant(now, first=True)] if wished else []
        actions = [*refused, *asked, *self._decide(now)]
        actions += [*(self._grant(now, first=False) if wished else ()), *self._give_up()]
        self.entrance.pace.watch(waiting=bool(self.state.queue), now=now)
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
        if not isinstance(event, Arrived | Behind | Released | LoadEnded | HintsChanged):
            self.state.changes.all = True
        match event:
            case Arrived() | Behind():
                return self._arrive(event, now)
            case Cancelled(request):
                if self.entrance.drop(request, now=now):
                    self.decisions.happened(request, "cancelled", now=now)
            case Released() | LoadEnded() | Bounced() | HintsChanged() | PinsChanged() | RunnerDrains():
                return self._hear(event, now)
            case RunnerUp() | RunnerDown():
                self._come_or_go(event, now)
            case Drains():
                self._draining = True
                return [*self.entrance.refuse_all("draining")]
            case Wished() | WishDropped():
                self.wishes.hear(event)
            case Tick():
                pass
            case _:
                assert_never(event)
        return []

    def _arrive(self, event: Arrived | Behind, now: float) -> list[Action]:
        if isinstance(event, Behind):
            self.state.queue.put_behind(event.hint, event.count)
            self.state.changes.note(event.hint, wanted=True)
            return []
        refusal = self.entrance.refusal(event, now=now)
        if self._draining:
            refusal = Refuse(event.request, "draining")
        if refusal is not None:
            self.decisions.arrived(event, due=now, now=now)
            return [refusal]
        waiting = self.entrance.admit(event, now=now)
        self.decisions.arrived(event, due=waiting.due, now=now)
        return []

    def _hear(
        self, event: Released | LoadEnded | Bounced | HintsChanged | PinsChanged | RunnerDrains, now: float
    ) -> list[Action]:
        view = self.state.fleet.runners.get(event.runner)
        if view is None or view.epoch != event.epoch:
            return []  # news of an incarnation that is gone
        match event:
            case Released():
                self._release(event, view, now)
            case LoadEnded():
                self._loaded(event, view, now)
                return [*self.wishes.ended(event)]
            case Bounced(request):
                view.blocked = True
                view.in_use.pop(request, None)
                self.decisions.happened(request, "bounced", now=now, runner=event.runner)
                return self._return_to_queue(request, now)
            case HintsChanged():
                view.hints = view.counted(event.hints)
                self.state.found(view)
                self.state.changes.note(None, view.runner)
                if event.stock is not None:
                    self.state.take_stock(view, event.stock)
            case PinsChanged(_, _, pinned):
                view.pinned = pinned
                self.state.refusals.forget(view.runner)
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
            if running.hint is not None and _has_no_room(view, event.least_bytes):
                self.state.refused(running.hint, view, event.least_bytes, NO_ROOM, now=now)

    def _loaded(self, event: LoadEnded, view: Runner, now: float) -> None:
        source = source_of(view.loads_from(event.hint), event.tier)
        if not view.load_over(event.hint, event.hints):
            return
        self.state.changes.note(event.hint, view.runner, wanted=True)
        self.decisions.load_ended(event, now=now)
        if event.ok:
            self.ended.loaded(event.hint, event.load_s, source)
            if event.load_s > 0:  # else it was there, and nothing is known about loads
                self.state.costs.loaded(event.hint, source, event.load_s)
            if view.hints is not None:
                view.hints |= {event.hint}
            self.state.fleet.found([event.hint])
            self.state.refusals.found([event.hint], view.runner)
            view.loaded = {h: v for h, v in view.loaded.items() if view.hints and h in view.hints}
            view.loaded[event.hint] = Loaded(now, event.load_s, event.tier)
            return
        if event.failure is not None and _has_no_room(view, event.least_bytes):
            self.state.refused(event.hint, view, event.least_bytes, event.failure, now=now)
        if not self.state.avoids(event.hint, view):
            self.state.fleet.give_up(event.hint)
        self.state.changes.all = True

    def _return_to_queue(self, request: RequestId, now: float) -> list[Action]:
        entry = self._in_flight.pop(request, None)
        if entry is None:
            return []
        waiting = replace(entry[2], attempts=entry[2].attempts + 1)
        if waiting.attempts >= BOUNCES_MAX:
            return [Refuse(request, "bounced_too_often", self.entrance.place_s(now=now))]
        if self._draining:
            return [Refuse(request, "draining")]
        self.state.queue.add(waiting)
        return []

    def _come_or_go(self, event: RunnerUp | RunnerDown, now: float) -> None:
        if isinstance(event, RunnerUp):
            self._up(event, now)
        else:
            self._down(event.runner, now, returns=event.returns)

    def _up(self, event: RunnerUp, now: float) -> None:
        known = self.state.fleet.runners.get(event.runner)
        if known is None or known.epoch != event.epoch:
            self._down(event.runner, now, returns=False)
            known = Runner(event.runner, event.epoch, event.slots, event.hints, event.caps)
            self.state.fleet.runners[event.runner] = known
        self.state.fleet.returning.discard(event.runner)
        for renamed in self.entrance.learn_joint(event.caps.joint):
            self.decisions.renamed(renamed.request, renamed.hint)
        known.caps, known.accepting, known.blocked = event.caps, True, False
        known.loading = {hint: known.loading.get(hint, now) for hint in event.loading}
        known.loading_from = {h: s for h, s in known.loading_from.items() if h in known.loading}
        known.leaving, known.pinned = frozenset(), event.pinned
        known.hints = known.counted(event.hints)
        if event.stock is not None:
            self.state.take_stock(known, event.stock)
        self.state.found(known)
        self.decisions.loads_known(event.runner, event.loading, now=now)
        ours = {q for q, (r, _, _) in self._in_flight.items() if r == event.runner}
        unknown = Running(None, now)
        known.in_use = {q: known.in_use.get(q, unknown) for q in (*event.executing, *ours)}

    def _down(self, runner: RunnerId, now: float, *, returns: bool) -> None:
        fleet = self.state.fleet
        fleet.runners.pop(runner, None)
        fleet.forget(runner)
        self.state.refusals.forget(runner)
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

    def _grant(self, now: float, *, first: bool) -> list[Action]:
        """Begin the loads that are wished for, of those that go *first* or of the others."""
        actions: list[Action] = []
        while (choice := self.wishes.choose(first=first, now=now)) is not None:
            if isinstance(choice, TellWish):
                actions.append(choice)
            else:
                actions += [self._load(choice, now), *self.wishes.began(choice)]
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
        source = "disk" if warm or hint is None else view.source(hint)
        view.in_use[move.request] = Running(hint, now, warm, source)
        self._in_flight[move.request] = (move.runner, view.epoch, waiting)
        if hint is not None:
            view.use(hint, self._dispatches)
            self.state.changes.note(None, fleet.serve(hint, move.runner))
        self.state.changes.note(hint, move.runner)
        if view.hints is None:
            self.state.changes.all = True  # it is warm for something new
        self.entrance.served(waiting, now=now)
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
        assert not view.pinned.intersection(move.evict), "a victim is pinned"
        self.state.changes.note(move.hint, move.runner)
        view.leaving = frozenset(move.evict)
        view.hints -= view.leaving
        view.loading[move.hint] = now
        source = view.loading_from[move.hint] = view.source(move.hint)
        load = Load(move.runner, view.epoch, move.hint, move.evict, move.reason, source)
        head, count = self.state.queue.head(move.hint), self.state.queue.count(move.hint)
        self.decisions.load_began(
            load, candidates, now=now, request=None if head is None else head.request, waiting=count
        )
        return load

    def _give_up(self) -> list[Action]:
        """Refuse what waits when no runner is up and none will be."""
        fleet = self.state.fleet
        if self.state.queue and not fleet.runners and not fleet.returning:
            return [*self.entrance.refuse_all("no_runner")]
        return []


def _with_load(dispatch: Dispatch, waiting: Waiting, view: Runner) -> Dispatch:
    """Return *dispatch* with its share in the load job that ended while its request waited, if one did."""
    loaded = None if waiting.hint is None else view.loaded.get(waiting.hint)
    if loaded is None or loaded.at < waiting.arrived_at:
        return dispatch
    first, loaded.used = not loaded.used, True
    load_s = min(loaded.load_s, loaded.at - waiting.arrived_at)
    return replace(dispatch, cache=loaded.tier if first else "join", load_s=load_s)


def _has_no_room(view: Runner, least_bytes: int) -> bool:
    """Return whether what takes *least_bytes* has no room on *view*, whatever ends there; 0: nobody has said so."""
    # What is executed beside it may have taken what there was, but never more than the whole card.
    beyond = view.caps.vram_bytes is not None and least_bytes > view.caps.vram_bytes
    return bool(least_bytes) and (beyond or not view.in_use)
