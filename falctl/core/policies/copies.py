"""What a further copy of a model saves the requests that wait now: part of the work moves there and ends earlier."""

from __future__ import annotations

from falctl.core.fleet import Runner
from falctl.core.policies.look import Look
from falctl.core.types import Hint


def saves(look: Look, hint: Hint, runner: Runner) -> float:
    """Return the request-seconds that a copy of *hint* on *runner* saves, now and by being there later."""
    backlog_s, elsewhere = look.queues.backlog_s(runner), look.queues.others(runner, hint)
    load_s = look.queues.load_s(hint, runner)
    return _moves(look, hint, max(load_s, backlog_s), elsewhere) + look.worth.further_copy(hint)


def saves_at_most(look: Look, hint: Hint, least_s: float) -> float:
    """Return a bound on the same for all runners; *least_s* is the least backlog of them."""
    return _moves(look, hint, max(look.queues.load_s(hint), least_s), 0.0) + look.worth.further_copy(hint)


def _moves(look: Look, hint: Hint, ready_s: float, elsewhere: float) -> float:
    """Return what a runner saves now that could begin in *ready_s*, with *elsewhere* requests for its other models."""
    queues, copies = look.queues, len(look.copies[hint])
    earlier_s = queues.drained_s(hint) - ready_s
    if earlier_s <= 0:
        return 0.0
    exec_s = queues.exec_s(hint)
    moved_s = min(look.state.queue.count_ahead(hint) * exec_s, earlier_s * copies / (copies + 1))
    return moved_s * (earlier_s / exec_s + look.knobs.relief * (queues.spared(hint) - elsewhere))
