"""
What peers have in common that bind a request to a runner before it is free: a queue for each runner.

The scheduler's queue is central; here each waiting request is given to a runner's private queue once, and leaves it,
in order, when that runner is idle. The runner then loads its model if it has to, evicting the least recently used
(or whatever the peer prefers), and executes; nothing overlaps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from falctl.core.fleet import Runner
from falctl.core.policies.base import Execute, LoadModel, Move, State
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RequestId, RunnerId


class Bound(ABC):
    """A policy that binds early. The reader of its private state is itself alone."""

    def __init__(self) -> None:
        self._queues: dict[RunnerId, deque[Waiting]] = {}
        self._bound: set[RequestId] = set()
        self._loaded_for: set[RequestId] = set()

    def choose(self, state: State, *, now: float) -> Move | None:
        """Bind what has come, then let an idle runner do the next thing for the head of its queue."""
        for waiting in self._unbound(state):
            if (taker := self.pick(waiting, state, now=now)) is None:
                break
            self.queue(taker).append(waiting)
            self._bound.add(waiting.request)
            if len(self.queue(taker)) == 1 and _is_idle(taker):
                return self._begin(self.queue(taker), taker, state, now=now)
        for runner in state.fleet.runners.values():
            queue = self.queue(runner)
            while queue and queue[0].request not in state.queue:  # its client has gone
                self._loaded_for.discard(queue[0].request)
                self._bound.discard(queue.popleft().request)
            if queue and _is_idle(runner):
                return self._begin(queue, runner, state, now=now)
        return None

    @abstractmethod
    def pick(self, waiting: Waiting, state: State, *, now: float) -> Runner | None:
        """Return the runner that *waiting* goes to; None: no runner takes anything now, so all that is left waits."""

    def evicted(self, hint: Hint, runner: Runner, state: State, *, now: float) -> list[Hint]:
        """Return what *runner* may evict, first choice first; the least recently used here."""
        del hint, state, now
        return sorted(runner.hints or (), key=lambda h: (runner.used.get(h, 0), h))

    def begun(self, waiting: Waiting, runner: Runner, *, cold: bool, now: float) -> None:  # noqa: B027 - a hook
        """Note that *runner* begins with *waiting*: with its load if *cold*, else with its execution."""

    # --- what the rules look at ------------------------------------------------------------------

    def queue(self, runner: Runner) -> deque[Waiting]:
        """Return the private queue of *runner*; while a model loads, the request it is for is still its head."""
        return self._queues.setdefault(runner.runner, deque())

    def outstanding(self, runner: Runner) -> int:
        """Return how many requests are bound to *runner* or execute there."""
        return len(self.queue(runner)) + len(runner.in_use)

    def will_have(self, hint: Hint, runner: Runner) -> bool:
        """Return whether *hint* is resident on *runner*, or will be for a request bound to it."""
        return hint in _resident(runner) or any(w.hint == hint for w in self.queue(runner))

    def _unbound(self, state: State) -> list[Waiting]:
        if len(state.queue) == len(self._bound):
            return []
        return [w for w in state.queue if w.request not in self._bound]

    def _begin(self, queue: deque[Waiting], runner: Runner, state: State, *, now: float) -> Move:
        waiting = queue[0]
        hint = waiting.hint
        cold = hint is not None and hint not in (runner.hints or ())
        if hint is not None and cold and runner.caps.loads:
            victims = make_room(hint, runner, state, order=self.evicted(hint, runner, state, now=now))
            self.begun(waiting, runner, cold=True, now=now)
            self._loaded_for.add(waiting.request)
            return LoadModel(hint, runner.runner, victims, "first in the queue of its runner, cold")
        queue.popleft()
        self._bound.discard(waiting.request)
        if waiting.request in self._loaded_for:
            self._loaded_for.remove(waiting.request)
        else:
            self.begun(waiting, runner, cold=cold, now=now)
        return Execute(waiting.request, runner.runner, "first in the queue of its runner")


def _is_idle(runner: Runner) -> bool:
    return runner.free_slots > 0 and not runner.loading


def make_room(hint: Hint, runner: Runner, state: State, *, order: list[Hint]) -> tuple[Hint, ...]:
    """Return as many of *order* as must go until *hint* fits on *runner*."""
    room = free_room(runner, state) - size(hint, runner, state)
    victims = []
    for victim in order:
        if room >= 0:
            break
        victims.append(victim)
        room += size(victim, runner, state)
    return tuple(victims)


def free_room(runner: Runner, state: State) -> float:
    """Return what is free on *runner*: bytes if it counts bytes, else models."""
    limit = runner.caps.vram_bytes if runner.caps.vram_bytes is not None else runner.caps.models_max
    assert limit is not None, "the peers' rules are for runners with a known limit"
    return limit - sum(size(hint, runner, state) for hint in _resident(runner))


def size(hint: Hint, runner: Runner, state: State) -> float:
    """Return what *hint* takes up on *runner*: its declared bytes if the runner counts bytes, else 1."""
    return float(state.costs.size_bytes(hint) or 0) if runner.caps.vram_bytes is not None else 1.0


def _resident(runner: Runner) -> set[Hint]:
    return {*(runner.hints or ()), *runner.loading}
