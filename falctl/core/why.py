"""
Why requests for a model wait now, or where one would go: told without deciding anything.

For a model that nobody waits for, one request is imagined behind all others and the policy asked what it would do
with it. Seconds are estimates from learnt costs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from falctl.core.fleet import Runner
from falctl.core.policies.base import Candidate, Changes, LoadModel, Move, Policy, State, Weighs
from falctl.core.policies.explain import free_in_s, hint_of, load_rests, standing
from falctl.core.queue import Waiting, WaitingQueue
from falctl.core.sources import SOURCES, Source
from falctl.core.types import Hint, RequestId, RunnerId, Wanted

SOON_S: Final = 0.05
"""What should take less than this is said to end any moment."""

PROBE: Final = RequestId("falctl-why")


@dataclass(frozen=True, slots=True)
class Task:
    """A request in a slot, or a load under way. ``hint`` is None for a request without one."""

    hint: Hint | None
    since_s: float


@dataclass(frozen=True, slots=True)
class RunnerWhy:
    """A runner as it stands to the model, and what keeps it busy."""

    candidate: Candidate
    free_in_s: float
    """Until it should have a free slot; 0: it has one."""
    executing: tuple[Task, ...]
    loading: tuple[Task, ...]
    refused_s: float | None = None
    """Seconds since it, or one like it, said that it has no room for the model, if that is believed; None: it is not."""


@dataclass(frozen=True, slots=True)
class Why:
    """The answer; ``conclusion`` says it in one sentence."""

    hint: Hint
    waiting: int
    oldest_s: float
    """How long the oldest of them has waited."""
    exec_s: float
    load_s: float
    """From `source`."""
    runners: tuple[RunnerWhy, ...]
    conclusion: str
    source: Source = "disk"
    """The nearest that any runner has for it."""


def why(state: State, policy: Policy, hint: Hint, *, now: float) -> Why:
    """Return why requests for *hint* wait, or where one would go now."""
    # One of its own: what a policy carries over from event to event must not change by being asked.
    policy = copy.copy(policy)
    waiting = state.queue.count(hint)
    asked = replace(state, changes=Changes()) if waiting else _with_probe(state, hint, now)
    move = policy.choose(asked, now=now) if state.fleet.runners else None
    if move is not None and hint_of(asked, move) != hint:
        move = None  # somebody else's turn is first
    rows = _rows(asked, policy, hint, now)
    oldest_s = max((now - w.arrived_at for w in state.queue.group(hint)), default=0.0)
    conclusion = _conclusion(state, hint, rows, move, oldest_s)
    costs, sources = state.costs, {runner.source(hint) for runner in state.fleet.runners.values()}
    source: Source = next((near for near in SOURCES if near in sources), "disk")
    load_s = costs.load_s(hint, source)
    return Why(hint, waiting, oldest_s, costs.exec_s(hint), load_s, rows, conclusion, source)


def brief(state: State, hint: Hint | None, *, now: float) -> str:
    """Return why requests for *hint* wait, in about 30 characters; cheap: one look at each runner."""
    runners = list(state.fleet.runners.values())
    if not runners:
        return "no runner is up"
    stands = {r.runner: standing(state, hint, r) for r in runners}
    for runner in runners:
        if hint is not None and stands[runner.runner] == "loading it":
            left_s = load_rests(state, runner, now=now).get(hint, free_in_s(state, runner, now=now))
            return f"runner {runner.runner} loads it, {_left(left_s)}"
    holders = [r for r in runners if stands[r.runner] == "warm, busy"]
    if holders:
        first = min(holders, key=lambda r: free_in_s(state, r, now=now))
        return f"runner {first.runner} busy, {_left(free_in_s(state, first, now=now))}"
    if any(stand in ("open", "warm") for stand in stands.values()):
        return "others go first"
    soonest_s = min((free_in_s(state, r, now=now) for r in runners if r.accepting), default=0.0)
    return f"all runners busy, {_left(soonest_s)}"


# --- facts ---------------------------------------------------------------------------------------


def _with_probe(state: State, hint: Hint, now: float) -> State:
    queue = WaitingQueue()
    order = 0
    for waiting in state.queue:
        queue.add(waiting)
        order = waiting.order
    queue.add(Waiting(PROBE, Wanted(hint, "header"), "", now, order + 1, due=now))
    return replace(state, queue=queue, changes=Changes())


def _rows(state: State, policy: Policy, hint: Hint, now: float) -> tuple[RunnerWhy, ...]:
    runners = state.fleet.runners
    if isinstance(policy, Weighs):
        candidates = policy.weigh(state, hint, now=now)
    else:
        candidates = tuple(Candidate(r.runner, standing(state, hint, r)) for r in runners.values())
    rows = (_row(state, runners[candidate.runner], candidate, hint, now=now) for candidate in candidates)
    return tuple(sorted(rows, key=lambda row: row.candidate.runner))


def _row(state: State, runner: Runner, candidate: Candidate, hint: Hint, *, now: float) -> RunnerWhy:
    refusal = state.refusals.of(hint, runner)
    return RunnerWhy(
        candidate,
        free_in_s(state, runner, now=now),
        tuple(Task(running.hint, now - running.started_at) for running in runner.in_use.values()),
        tuple(Task(loading, now - since) for loading, since in runner.loading.items()),
        None if refusal is None else now - refusal.at,
    )


# --- the sentence --------------------------------------------------------------------------------


def _conclusion(
    state: State, hint: Hint, rows: Sequence[RunnerWhy], move: Move | None, oldest_s: float
) -> str:
    waiting = state.queue.count(hint)
    if waiting:
        who = "1 waits, for" if waiting == 1 else f"{waiting} wait, the oldest for"
        begin = f"{who} {_seconds(oldest_s)}: "
        return begin + (_goes(move) if move else _waits(state, hint, rows))
    holders = [row.candidate.runner for row in rows if row.candidate.standing in ("warm", "warm, busy")]
    begin = f"nobody waits; {'warm on ' + _names(holders) if holders else 'nobody holds it'}; a request now "
    refused = [row.refused_s for row in rows if row.refused_s is not None]
    if not holders and refused and not state.fleet.returning and state.refused_everywhere(hint) is not None:
        ago = _seconds(min(refused))
        return begin + f"would be refused: no runner had room for it when it was last asked, {ago} ago"
    return begin + ("would be " + _goes(move) if move else "would wait: " + _waits(state, hint, rows))


def _goes(move: Move) -> str:
    if isinstance(move, LoadModel):
        evicting = f", evicting {', '.join(move.evict)}" if move.evict else ""
        return f"served after a load on runner {move.runner}{evicting} ({move.reason})"
    return f"sent to runner {move.runner} ({move.reason})"


def _waits(state: State, hint: Hint, rows: Sequence[RunnerWhy]) -> str:
    if not rows:
        return "no runner is up" + (
            ", one is on its way" if state.fleet.returning else " and none will be; see `falctl status`"
        )
    loading = [row for row in rows if row.candidate.standing == "loading it"]
    if loading:
        ends = ((_load_left(state, row, hint), row.candidate.runner) for row in loading)
        left_s, runner = min(ends)
        return f"runner {runner} loads it, {_left(left_s)}"
    holders = [row for row in rows if row.candidate.standing == "warm, busy"]
    if holders:
        return _holds(holders, rows)
    if any(row.candidate.standing in ("warm", "open") for row in rows):
        return "others are due before it"
    return "nobody holds it, and " + ", ".join(map(_cannot, rows))


def _load_left(state: State, row: RunnerWhy, hint: Hint) -> float:
    """Return the seconds until the load ends; of one that a cold execution makes, until that ends."""
    load_s = state.costs.load_s(hint, state.fleet.runners[row.candidate.runner].loads_from(hint))
    since = [task.since_s for task in row.loading if task.hint == hint]
    return max(load_s - since[0], 0.0) if since else row.free_in_s


def _holds(holders: Sequence[RunnerWhy], rows: Sequence[RunnerWhy]) -> str:
    first = min(holders, key=lambda row: (row.free_in_s, row.candidate.runner))
    text = f"holds for runner {first.candidate.runner}, free {_soon(first.free_in_s)}"
    weighed = [row.candidate for row in rows if row.candidate.saves is not None]
    options = [c for c in weighed if c.cost is not None]
    if options:
        best = min(options, key=lambda c: (c.cost, len(c.evict), c.runner))
        saves, costs = best.saves or 0.0, (best.price or 0.0) + best.loss
        return (
            text
            + f"; a copy on runner {best.runner} would save {saves:.0f} request-seconds and costs {costs:.0f}"
        )
    if weighed:
        return text + "; no other runner could load it now"
    free = [row.candidate.runner for row in rows if row.candidate.standing == "open"]
    return text + ("" if free else "; no other runner has a free slot")


def _cannot(row: RunnerWhy) -> str:
    candidate = row.candidate
    match candidate.standing:
        case "no room":
            return f"runner {candidate.runner} has nothing to evict for it"
        case "refused it":
            assert row.refused_s is not None, "somebody has refused it"
            return f"runner {candidate.runner} had no room for it {_seconds(row.refused_s)} ago"
        case "busy":
            return f"runner {candidate.runner} is busy, {_left(row.free_in_s)}"
        case _:
            return f"runner {candidate.runner} takes nothing now"


def _names(runners: Sequence[RunnerId]) -> str:
    return ("runner " if len(runners) == 1 else "runners ") + ", ".join(map(str, runners))


def _soon(seconds: float) -> str:
    return "any moment" if seconds < SOON_S else f"in about {_seconds(seconds)}"


def _left(seconds: float) -> str:
    return "any moment" if seconds < SOON_S else f"{_seconds(seconds)} left"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
