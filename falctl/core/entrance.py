"""
Who may wait, and when each is due: the bounds of the queue, turns between clients, and who leaves it unserved.

Refusals are told with how many wait, and with when a place should turn free (`falctl.core.pace`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from falctl.core.events import (
    Arrived,
    Event,
    Failure,
    LoadEnded,
    PinsChanged,
    Refuse,
    RefuseCode,
    Released,
    RunnerDown,
    RunnerUp,
)
from falctl.core.fair import FairShare
from falctl.core.pace import Pace
from falctl.core.policies.base import State
from falctl.core.policies.space import may_take
from falctl.core.queue import Waiting
from falctl.core.sources import named
from falctl.core.types import Hint, RequestId, Wanted


@dataclass(slots=True)
class Entrance:
    """
    Puts requests into the queue of *state*, and takes out those that will not be served.

    *queue_max* requests may wait, *client_max* of one client; 0: as many as there is room for.
    """

    state: State
    queue_max: int
    client_max: int = 0
    fair: FairShare = field(default_factory=FairShare)
    pace: Pace = field(default_factory=Pace)
    _arrivals: int = 0

    def refusal(self, event: Arrived, *, now: float) -> Refuse | None:
        """Return the refusal of a request that there is no room for; None: it may wait."""
        if not event.bounded:
            return None
        queue, client = self.state.queue, event.client
        if len(queue) >= self.queue_max:
            return Refuse(event.request, "queue_full", self.place_s(now=now), len(queue))
        if client and self.client_max and queue.count_of(client) >= self.client_max:
            after_s = self.place_s(now=now) / self.pace.share(client, clients=queue.clients)
            return Refuse(event.request, "client_queue_full", after_s, queue.count_of(client))
        return None

    def named(self, event: Arrived) -> Arrived:
        """Return *event* with the name by which runners know the wanted model, as far as they have said how they join names."""
        wanted, joint = event.wanted, self.state.fleet.joint
        if wanted is None or not wanted.laid or joint is None:
            return event
        return replace(event, wanted=named(wanted, joint))

    def learn_joint(self, joint: str) -> Iterator[Waiting]:
        """A runner says by what its app joins names: go by that; yield those who wait for a model of another name now."""
        self.state.fleet.joint = joint
        for waiting in [w for w in self.state.queue if w.wanted is not None and w.wanted.laid]:
            assert waiting.wanted is not None
            self.state.queue.pop(waiting.request)
            renamed = replace(waiting, wanted=named(waiting.wanted, joint))
            self.state.queue.add(renamed)
            yield renamed

    def admit(self, event: Arrived, *, now: float) -> Waiting:
        """Let a request wait; learn from it what is wanted."""
        self._arrivals += 1
        costs, wanted = self.state.costs, event.wanted
        if wanted is not None:
            if event.size_bytes:
                costs.declare(wanted.hint, event.size_bytes)
            self.state.demand.arrived(wanted.hint, event.client, now=now)
        exec_s = costs.mean_exec.value if wanted is None else costs.exec_s(wanted.hint)
        share_s = exec_s / self._slots()
        waiting = Waiting(
            event.request,
            wanted,
            event.client,
            now,
            self._arrivals,
            due=self._due(event, share_s, now=now),
            start_by=event.start_by,
            priority=event.priority,
            share_s=share_s,
            direct=event.bounded,
        )
        self.state.queue.add(waiting)
        self.state.changes.note(waiting.hint, wanted=True)
        return waiting

    def place_s(self, *, now: float) -> float:
        """Return in how many seconds the next place in the queue should turn free."""
        return self.pace.gap_s(prior_s=self.state.costs.mean_exec.value / self._slots(), now=now)

    # --- leaving ---------------------------------------------------------------------------------

    def served(self, waiting: Waiting, *, now: float) -> None:
        """Note that a request goes to a runner."""
        if now > waiting.arrived_at:  # else it has had no place
            self.pace.leave(waiting.client, now=now)

    def drop(self, request: RequestId, *, now: float) -> bool:
        """Forget *request*; its client is not charged for it. Return whether it waited."""
        if (gone := self.state.queue.pop(request)) is None:
            return False
        self.state.changes.all = True
        self.pace.leave(gone.client, now=now)
        self.fair.refund(gone.client, gone.priority, gone.share_s)
        return True

    def refuse_late(self, *, now: float) -> list[Refuse]:
        """Refuse what should have started by now."""
        late = self.state.queue.late(now)
        for request in late:
            self.drop(request, now=now)
        return [Refuse(request, "start_timeout") for request in late]

    def refuse_unfit(self, event: Event) -> list[Refuse]:
        """
        Refuse what fits no card, or not beside what is pinned there, if *event* can have brought that about.

        And what cannot be loaded, in the words of the runner that tried, unless somebody has it. Of the durable queue's
        jobs only what fits no card: the others are executed, so that the answer that is kept is the app's.
        """
        match event:
            case LoadEnded(hint=hint, failure=Failure(lasts=True) as failure) if not self._is_somewhere(hint):
                return self._refuse_direct(hint, failure)
            case Arrived(wanted=Wanted(hint)) | LoadEnded(hint=hint):
                hints: list[Hint | None] = [hint]
            case RunnerUp() | RunnerDown() | PinsChanged():
                hints = list(self.state.queue.hints())
            case Released(least_bytes=refused) if refused:
                hints = list(self.state.queue.hints())
            case _:
                return []
        return [refuse for hint in hints if hint is not None for refuse in self._refuse_unfit(hint)]

    def refuse_all(self, code: RefuseCode) -> list[Refuse]:
        """Refuse everything that waits."""
        return [Refuse(request, code) for request in self._take(list(self.state.queue))]

    def _refuse_unfit(self, hint: Hint) -> list[Refuse]:
        fleet, size_bytes = self.state.fleet, self.state.costs.size_bytes(hint)
        if not fleet.runners:
            return []
        if size_bytes is not None and not fleet.fits(hint, size_bytes):
            requests = self._take(list(self.state.queue.group(hint)))
            return [Refuse(request, "model_too_large", size_bytes=size_bytes) for request in requests]
        runners = fleet.runners.values()
        if fleet.returning:
            return []
        if any(may_take(runner, hint, fleet=runners, costs=self.state.costs) for runner in runners):
            refusal = self.state.refused_everywhere(hint)
            if refusal is None or self._is_somewhere(hint):
                return []
            return self._refuse_direct(hint, refusal.failure)
        pinned = tuple(sorted(frozenset().union(*(runner.pinned for runner in runners))))
        requests = self._take(list(self.state.queue.group(hint)))
        return [Refuse(request, "pins_leave_no_room", pinned=pinned) for request in requests]

    def _refuse_direct(self, hint: Hint, failure: Failure) -> list[Refuse]:
        requests = self._take([waiting for waiting in self.state.queue.group(hint) if waiting.direct])
        return [Refuse(request, "load_failed", failure=failure) for request in requests]

    def _is_somewhere(self, hint: Hint) -> bool:
        """Return whether a runner holds *hint*, or is getting it."""
        return any(self.state.fleet.warming(hint))

    def _take(self, waiting: list[Waiting]) -> list[RequestId]:
        self.state.changes.all = True
        for gone in waiting:
            self.state.queue.pop(gone.request)
            self.fair.refund(gone.client, gone.priority, gone.share_s)
        return [gone.request for gone in waiting]

    def _due(self, event: Arrived, share_s: float, *, now: float) -> float:
        due = self.fair.due(event.client, event.priority, share_s, now=now)
        if event.again:
            heads = (head.due for head in self.state.queue.heads() if head.priority == event.priority)
            due = min(due, math.nextafter(min(heads, default=due), -math.inf))
        return due

    def _slots(self) -> int:
        return max(sum(runner.slots for runner in self.state.fleet.runners.values()), 1)
