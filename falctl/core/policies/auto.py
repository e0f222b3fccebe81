"""
`auto`: hits first by due time, copies that pay for themselves, victims by what they are worth.

Two kinds of move, both ordered by a virtual due time, ``due + head start * own cost``: short work first, but nothing
that became due later than the head start can overtake. That bounds bypassing, whatever the length of the queue.

    execute  over free runners and the models resident there that somebody waits for: the least due time; a model
             that only this runner holds goes before one that others can run, too
    load     over models that somebody waits for and nobody loads, the least due time (its cost includes the load):
             - nobody holds it: load it where victims and backlog cost least
             - somebody does: a further copy only if what it saves exceeds its price and its victims; else hold

What a copy is worth is the load time per second that it saves: rate x load x (Erlang B of one copy less - Erlang B),
with the offered load taken higher than its mean because requests come in bursts. A copy is retired by the same
rule: it is a victim as soon as it is worth less than the others. The rule grew from the prototype "Tideline", which
knew true costs and the ends of running jobs; this one learns and estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from falctl.core.fleet import Runner
from falctl.core.policies.base import Candidate, Execute, LoadModel, Move, State
from falctl.core.policies.explain import weigh, weighed
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.look import Look, look_at
from falctl.core.types import Hint


@dataclass(frozen=True, slots=True)
class _Choice:
    """A move and when it is due."""

    key: float
    runner: Runner
    hint: Hint | None
    reason: str
    evict: tuple[Hint, ...] = ()


class Auto:
    """See the module."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move."""
        look = look_at(state, self.knobs, now=now)
        execute = self._execute(look)
        # A load can wait for the next round if it runs beside the execution, unless it needs the slot that this would pin.
        overlaps = all(r.caps.overlaps for r in look.runners)
        if execute is not None and overlaps and not self._blocked(look, execute):
            return self._told(look, _execution(state, execute))
        load = self._load(look)
        if load is not None and (execute is None or load.key < execute.key):
            return self._told(look, _loading(state, load))
        return None if execute is None else self._told(look, _execution(state, execute))

    def weigh(self, state: State, hint: Hint, *, now: float) -> tuple[Candidate, ...]:
        """Return every runner as it stands to *hint*, which somebody waits for; nothing is decided."""
        return weigh(look_at(state, self.knobs, now=now), hint, self, busy_too=True)

    def saves(self, look: Look, hint: Hint, runner: Runner) -> float:
        """Return the request-seconds that a further copy on *runner* saves, now and over its horizon."""
        copies = len(look.copies[hint])
        return self._saves(look, hint, runner) + look.horizon_s * look.copy_value(hint, copies + 1)

    def _told(self, look: Look, move: Move) -> Move:
        return weighed(look, move, self, lambda look, runner, hint: _regret(look, runner, hint)[0])

    # --- executions ------------------------------------------------------------------------------

    def _execute(self, look: Look) -> _Choice | None:
        least: tuple[float, str] | None = None
        holders: list[Runner] = []
        chosen: Hint | None = None
        for runner in look.runners:
            if not runner.free_slots:
                continue
            for hint in _servable(look, runner):
                key = (self._turn(look, hint, runner), hint or "")
                if least is None or key < least:
                    least, holders, chosen = key, [runner], hint
                elif hint == chosen:
                    holders.append(runner)
        if least is None:
            return None
        runner = holders[0] if len(holders) == 1 else min(holders, key=lambda r: _regret(look, r, chosen))
        reason = "wants no hint" if chosen is None else "warm"
        return _Choice(look.execute_key(chosen, runner.caps.gpu), runner, chosen, reason)

    def _turn(self, look: Look, hint: Hint | None, runner: Runner) -> float:
        """Return when *hint* is due on *runner*: later if others could run it, so that scarce models go first."""
        key = look.execute_key(hint, runner.caps.gpu)
        if hint is None:
            return key
        return key + self.knobs.scarce * (len(look.copies[hint]) - 1) * look.exec_s(hint)

    # --- loads -----------------------------------------------------------------------------------

    def _blocked(self, look: Look, execute: _Choice) -> bool:
        """Return whether a model that nobody holds is due before, and would find no room beside *execute*."""
        open_runners = [r for r in look.runners if _may_load(r)]
        for hint in look.state.queue.hints() if open_runners else ():
            if hint is None or hint in look.copies:
                continue
            key = look.load_key(hint)
            if key < execute.key and not any(self._fits(look, r, hint, execute) for r in open_runners):
                return True
        return False

    def _fits(self, look: Look, runner: Runner, hint: Hint, execute: _Choice) -> bool:
        keep = execute.hint if runner is execute.runner else None
        return look.victims(runner, hint, look.load_key(hint), keep=keep) is not None

    def _load(self, look: Look) -> _Choice | None:
        open_runners = [r for r in look.runners if _may_load(r)]
        if not open_runners:
            return None
        coming = {h for r in look.runners for h in _coming(r)}
        least_s = min(map(look.backlog_s, open_runners))
        price = look.price()
        hints = [h for h in look.state.queue.hints() if h is not None and h not in coming]
        hints = [h for h in hints if h not in look.copies or self._may_pay(look, h, least_s) > price]
        for key, hint in sorted((look.load_key(h), h) for h in hints):
            holders = look.copies.get(hint, [])
            options = [r for r in open_runners if r not in holders] if holders else open_runners
            if hint in look.state.fleet.unloadable:  # it is to be executed cold, so that its client hears why
                options = [r for r in options if r.free_slots]
            if options and (found := self._place(look, hint, key, options)) is not None:
                return found
        return None

    def _place(self, look: Look, hint: Hint, key: float, options: list[Runner]) -> _Choice | None:
        """Return where to load *hint* for the least cost; None: nowhere now, or holding is cheaper."""
        holders = look.copies.get(hint, [])
        gain = look.horizon_s * look.copy_value(hint, len(holders) + 1) - look.price() if holders else 0.0
        if holders and max(self._saves(look, hint, r) for r in options) + gain < 0:
            return None
        best: tuple[float, int, int] | None = None
        chosen: tuple[Runner, tuple[Hint, ...], float] | None = None
        for runner in options:
            if (found := look.victims(runner, hint, key)) is None:
                continue
            loss = look.horizon_s * found[1]
            cost = (loss + self.knobs.balance * look.backlog_s(runner), len(found[0]), runner.runner)
            if best is None or cost < best:
                best, chosen = cost, (runner, found[0], loss)
        if chosen is None:
            return None
        runner, victims, loss = chosen
        if holders and self._saves(look, hint, runner) + gain < loss:
            return None
        return _Choice(
            key, runner, hint, "a further copy pays" if holders else "nobody is warm for it", victims
        )

    def _may_pay(self, look: Look, hint: Hint, least_s: float) -> float:
        """Return a bound on what a copy could earn on any runner; *least_s* is the least backlog of them."""
        holders = look.copies[hint]
        n = len(holders)
        keeps = look.horizon_s * look.copy_value(hint, n + 1)
        drained_s = sum(map(look.backlog_s, holders)) / n
        earlier_s = drained_s - max(look.state.costs.load_s(hint), least_s)
        if earlier_s <= 0:
            return keeps
        exec_s = look.exec_s(hint)
        moved_s = min(look.state.queue.count(hint) * exec_s, earlier_s * n / (n + 1))
        spared = sum(look.others(r, hint) for r in holders) / n
        return keeps + moved_s * (earlier_s / exec_s + self.knobs.relief * spared)

    def _saves(self, look: Look, hint: Hint, runner: Runner) -> float:
        """Return the request-seconds saved by a copy on *runner*: part of the work moves there and ends earlier."""
        holders = look.copies[hint]
        exec_s = look.exec_s(hint)
        drained_s = sum(map(look.backlog_s, holders)) / len(holders)
        earlier_s = drained_s - max(look.state.costs.load_s(hint), look.backlog_s(runner))
        moved_s = min(look.state.queue.count(hint) * exec_s, earlier_s * len(holders) / (len(holders) + 1))
        if moved_s <= 0:
            return 0.0
        spared = sum(look.others(r, hint) for r in holders) / len(holders) - look.others(runner, hint)
        return moved_s * (earlier_s / exec_s + self.knobs.relief * spared)


def _regret(look: Look, runner: Runner, hint: Hint | None) -> tuple[float, float, int]:
    """Return what else *runner* is wanted for: of several that are warm, take the least wanted."""
    others = sorted(h for h in runner.hints or () if h != hint)
    return sum(map(look.work_s, others)), sum(map(look.state.demand.share, others)), runner.runner


def _servable(look: Look, runner: Runner) -> Iterator[Hint | None]:
    """Iterate over what waits and could run on *runner* at once."""
    queue = look.state.queue
    if queue.count(None):
        yield None
    for hint in runner.hints or ():
        if queue.count(hint):
            yield hint


def _may_load(runner: Runner) -> bool:
    """Return whether a load could begin there now: as a job of its own, or as part of a cold execution."""
    return runner.can_load if runner.caps.loads else bool(runner.free_slots)


def _coming(runner: Runner) -> Iterator[Hint]:
    """Iterate over what *runner* is loading: as a job, or by itself for a cold execution."""
    yield from runner.loading
    if not runner.caps.loads:
        for running in runner.in_use.values():
            if running.hint is not None and running.hint not in (runner.hints or ()):
                yield running.hint


def _execution(state: State, choice: _Choice) -> Execute:
    head = state.queue.head(choice.hint)
    assert head is not None
    return Execute(head.request, choice.runner.runner, choice.reason)


def _loading(state: State, choice: _Choice) -> Move:
    assert choice.hint is not None
    if choice.runner.caps.loads and choice.hint not in state.fleet.unloadable:
        return LoadModel(choice.hint, choice.runner.runner, choice.evict, choice.reason)
    return _execution(state, choice)
