"""Which of the models that are resident somewhere runs next, and on which of their holders."""

from __future__ import annotations

from collections.abc import Iterator

from falctl.core.fleet import Runner
from falctl.core.policies.base import State
from falctl.core.policies.look import Choice, Look, Reservation
from falctl.core.types import Hint


def find_execution(look: Look, reserved: Reservation | None) -> Choice | None:
    """Return the execution that is due first on a runner with a free slot; *reserved* keeps what comes later off one."""
    least: tuple[float, str] | None = None
    holders: list[Runner] = []
    chosen: Hint | None = None
    for runner in look.runners:
        if not runner.free_slots:
            continue
        for hint in _servable(look.state, runner):
            if reserved is not None and reserved.keeps_off(runner, look.queues.execute_key(hint, runner)):
                continue
            key = (look.queues.scarce_key(hint, runner), hint or "")
            if least is None or key < least:
                least, holders, chosen = key, [runner], hint
            elif hint == chosen:
                holders.append(runner)
    if least is None:
        return None
    runner = holders[0] if len(holders) == 1 else min(holders, key=lambda r: _order(look, r, chosen))
    return Choice(look.queues.execute_key(chosen, runner), runner, chosen, _reason(look.state, chosen))


def regret(look: Look, runner: Runner, hint: Hint | None) -> float:
    """Return the seconds of work that waits for the other models of *runner*: of several holders take the least wanted."""
    return sum(look.queues.work_s(h) for h in sorted(look.state.fleet.held(runner)) if h != hint)


def _order(look: Look, runner: Runner, hint: Hint | None) -> tuple[bool, int, float, float, int, int]:
    fleet, demand = look.state.fleet, look.state.demand
    # Where it ran last it may be warm, although nobody says so.
    strange = hint is not None and hint in fleet.unlisted and not fleet.served_last(hint, runner)
    share = sum(map(demand.share, sorted(h for h in fleet.held(runner) if h != hint)))
    regret_s = regret(look, runner, hint)
    return (strange, len(runner.in_use), regret_s, share, runner.dispatched_order, runner.runner)


def _servable(state: State, runner: Runner) -> Iterator[Hint | None]:
    """Iterate over what waits and could run on *runner* at once."""
    queue, fleet = state.queue, state.fleet
    if queue.count(None):
        yield None
    for hint in fleet.held(runner):
        if queue.count(hint):
            yield hint
    for hint in fleet.unlisted:
        if queue.count(hint) and not fleet.warm(hint, runner):
            yield hint


def _reason(state: State, hint: Hint | None) -> str:
    if hint is None:
        return "wants no hint"
    return "no runner ever lists it" if hint in state.fleet.unlisted else "warm"
