"""
`auto`: hits first by due time, copies that pay for themselves, victims by what they are worth.

Two kinds of move, both ordered by a virtual due time, ``due + C * own cost``: short work first, but nothing that
became due more than ``C * cost`` later can overtake.

    execute  over free runners and the models resident there that somebody waits for: the least due time
    load     over models that somebody waits for and nobody loads, the least due time (its cost includes the load):
             - nobody holds it: load it where victims and backlog cost least
             - somebody does: a further copy only if what it saves exceeds its price and its victims; else hold

What a copy is worth is the load time per second that it saves: rate x load x (Erlang B of one copy less - Erlang B),
with the offered load taken `BURST` times as high because requests come in bursts. What a copy costs grows with the
load of the fleet. All estimates are learnt (`falctl.core.costs`, `falctl.core.demand`); how long a running job still
takes is its expected time less what has passed.

The rule is that of the prototype "Tideline"; here it does not know true costs or the ends of running jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from falctl.core.demand import erlang_b
from falctl.core.fleet import Runner
from falctl.core.policies.base import Execute, LoadModel, Move, State
from falctl.core.types import Hint, RunnerId


@dataclass(frozen=True, slots=True)
class Knobs:
    """All parameters. ``locality`` 1 is the tuned trade; less loads more often, more waits longer."""

    head_start: float = 6.0
    """C: seconds of precedence per second of own cost; 0 is pure order of arrival."""
    price: float = 35.0
    """Gamma: request-seconds that a further copy must earn per second of mean load at full utilisation."""
    horizon: float = 16.0
    """Phi: a copy's value counts for the time in which this many requests per slot arrive."""
    burst: float = 3.0
    """Beta: by how much the offered load of a model is taken higher than its mean."""
    balance: float = 1.0
    """Request-seconds per second of backlog when choosing the runner for a load."""


@dataclass(slots=True)
class _Look:
    """What is computed at most once per decision."""

    state: State
    now: float
    runners: list[Runner]
    copies: dict[Hint, list[Runner]]
    values: dict[Hint, float] = field(default_factory=dict)
    backlog: dict[RunnerId, float] | None = None


@dataclass(frozen=True, slots=True)
class _Candidate:
    key: float
    runner: Runner
    hint: Hint | None
    evict: tuple[Hint, ...] = ()
    reason: str = ""


class Auto:
    """See the module."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move."""
        runners = [r for r in state.fleet.runners.values() if r.accepting]
        look = _Look(state, now, runners, _copies(runners))
        execute = self._best_execute(look)
        overlaps = all(r.caps.overlaps for r in runners)
        if execute is not None and overlaps:
            blocked = self._blocked(look)
            if blocked is None or blocked >= execute.key:
                return _execute(state, execute)
        load = self._best_load(look)
        if load is not None and (execute is None or load.key < execute.key):
            return _load(state, load)
        return None if execute is None else _execute(state, execute)

    # --- executions ------------------------------------------------------------------------------

    def _best_execute(self, look: _Look) -> _Candidate | None:
        best: list[_Candidate] = []
        queue = look.state.queue
        for runner in look.runners:
            if not runner.free_slots:
                continue
            for hint in _servable(look, runner):
                head = queue.head(hint)
                if head is None:
                    continue
                key = head.due + self.knobs.head_start * self._exec_s(look, hint, runner)
                if not best or key < best[0].key:
                    best = [
                        _Candidate(key, runner, hint, reason="warm" if hint is not None else "wants no hint")
                    ]
                elif hint == best[0].hint:
                    best.append(_Candidate(key, runner, hint, reason="warm"))
        return (
            min(best, key=lambda c: self._regret(look, c)) if len(best) > 1 else (best[0] if best else None)
        )

    def _regret(self, look: _Look, candidate: _Candidate) -> tuple[float, float, int]:
        """Return what else the runner of *candidate* is wanted for: of several that are warm, take the least wanted."""
        others = [h for h in candidate.runner.hints or () if h != candidate.hint]
        work = sum(self._work(look, h) for h in others)
        return work, sum(look.state.demand.share(h) for h in others), candidate.runner.runner

    def _exec_s(self, look: _Look, hint: Hint | None, runner: Runner | None = None) -> float:
        costs = look.state.costs
        if hint is None:
            return costs.mean_exec.value
        return costs.exec_s(hint, runner.caps.gpu if runner is not None else "")

    def _work(self, look: _Look, hint: Hint) -> float:
        """Return the seconds of waiting work for *hint* per copy."""
        waiting = look.state.queue.count(hint)
        return waiting * self._exec_s(look, hint) / max(len(look.copies.get(hint, ())), 1) if waiting else 0.0

    # --- loads -----------------------------------------------------------------------------------

    def _blocked(self, look: _Look) -> float | None:
        """Return the least due time of a model that nobody holds and for which no runner can make room now."""
        least: float | None = None
        open_runners = [r for r in look.runners if _may_load(r)]
        if not open_runners:
            return None
        for hint in look.state.queue.hints():
            if hint is None or look.copies.get(hint):
                continue
            key = self._load_key(look, hint)
            if least is not None and key >= least:
                continue
            if all(self._victims(look, runner, hint, key) is None for runner in open_runners):
                least = key
        return least

    def _best_load(self, look: _Look) -> _Candidate | None:
        open_runners = [r for r in look.runners if _may_load(r)]
        if not open_runners:
            return None
        best: _Candidate | None = None
        for hint in look.state.queue.hints():
            if hint is None:
                continue
            holders = look.copies.get(hint, [])
            if any(hint in r.loading or (not r.caps.loads and r.executes(hint)) for r in look.runners):
                continue  # one load of a model at a time; the others who wait join it
            key = self._load_key(look, hint)
            if best is not None and key >= best.key:
                continue
            options = [r for r in open_runners if r not in holders]
            if options and (found := self._place(look, hint, options, holders, key)) is not None:
                best = found
        return best

    def _place(
        self, look: _Look, hint: Hint, options: list[Runner], holders: list[Runner], key: float
    ) -> _Candidate | None:
        """Return where to load *hint* for the least cost; None: nowhere now, or holding is cheaper."""
        backlog = self._backlog(look)
        horizon_s = self._horizon_s(look)
        gain = self._copy_gain(look, hint, holders, horizon_s) if holders else 0.0
        best: tuple[float, int] | None = None
        chosen: tuple[Runner, tuple[Hint, ...], float] | None = None
        if holders and max(self._saves(look, hint, holders, r) for r in options) + gain < 0:
            return None
        for runner in options:
            found = self._victims(look, runner, hint, key)
            if found is None:
                continue
            victims, loss = found
            cost = (horizon_s * loss + self.knobs.balance * backlog[runner.runner], runner.runner)
            if best is None or cost < best:
                best, chosen = cost, (runner, victims, loss)
        if chosen is None:
            return None
        runner, victims, loss = chosen
        if holders and self._saves(look, hint, holders, runner) + gain < horizon_s * loss:
            return None
        return _Candidate(
            key, runner, hint, victims, "a further copy pays" if holders else "nobody is warm for it"
        )

    def _load_key(self, look: _Look, hint: Hint) -> float:
        head = look.state.queue.head(hint)
        assert head is not None
        return head.due + self.knobs.head_start * (self._exec_s(look, hint) + look.state.costs.load_s(hint))

    def _saves(self, look: _Look, hint: Hint, holders: list[Runner], runner: Runner) -> float:
        """Return the request-seconds saved by a copy on *runner*: part of the work moves there and ends earlier."""
        backlog = self._backlog(look)
        exec_s = self._exec_s(look, hint)
        drained_s = sum(backlog[r.runner] for r in holders) / len(holders)
        start_s = max(look.state.costs.load_s(hint), backlog[runner.runner])
        moved_s = min(
            look.state.queue.count(hint) * exec_s, (drained_s - start_s) * len(holders) / (len(holders) + 1)
        )
        return moved_s / exec_s * (drained_s - start_s) if moved_s > 0 else 0.0

    def _copy_gain(self, look: _Look, hint: Hint, holders: list[Runner], horizon_s: float) -> float:
        """Return what keeping one more copy is worth, less its price, in request-seconds."""
        costs, gap_s = look.state.costs, max(look.state.demand.gap_s, 1e-9)
        mean_exec, mean_load = costs.mean_exec.value, costs.mean_load.value
        utilisation = min(1.0, mean_exec / gap_s / len(look.runners))
        price = self.knobs.price * utilisation * mean_load * min(1.0, mean_load / mean_exec)
        return horizon_s * self._copy_value(look, hint, len(holders) + 1) - price

    def _horizon_s(self, look: _Look) -> float:
        slots = sum(_capacity(r, look) for r in look.runners)
        return self.knobs.horizon * slots * (look.state.demand.gap_s or 1.0)

    def _backlog(self, look: _Look) -> dict[RunnerId, float]:
        """Return the seconds until each runner has drained what runs and what waits for it now."""
        if look.backlog is None:
            look.backlog = {r.runner: self._drained_s(look, r) for r in look.runners}
        return look.backlog

    def _drained_s(self, look: _Look, runner: Runner) -> float:
        costs = look.state.costs
        rest = 0.0
        for running in runner.in_use.values():
            expected = self._exec_s(look, running.hint, runner)
            if running.hint is not None and not running.warm and not runner.caps.loads:
                expected += costs.load_s(running.hint)
            rest = max(rest, _remaining(expected, look.now - running.started_at))
        if not runner.caps.overlaps:
            for hint, since in runner.loading.items():
                rest = max(rest, _remaining(costs.load_s(hint), look.now - since))
        return rest + sum(self._work(look, h) for h in {*(runner.hints or ()), *runner.loading})

    # --- victims ---------------------------------------------------------------------------------

    def _value(self, look: _Look, hint: Hint) -> float:
        if hint not in look.values:
            look.values[hint] = self._copy_value(look, hint, max(len(look.copies.get(hint, ())), 1))
        return look.values[hint]

    def _copy_value(self, look: _Look, hint: Hint, copies: int) -> float:
        """Return the load seconds per second that the last of *copies* saves."""
        rate = look.state.demand.rate(hint)
        offered = self.knobs.burst * rate * self._exec_s(look, hint)
        return (
            rate * look.state.costs.load_s(hint) * (erlang_b(offered, copies - 1) - erlang_b(offered, copies))
        )

    def _victims(
        self, look: _Look, runner: Runner, hint: Hint, key: float
    ) -> tuple[tuple[Hint, ...], float] | None:
        """Return the cheapest set whose eviction makes room, and its value; None: there is no room now."""
        free = _room(runner, look) - _size(hint, runner, look)
        if free >= 0:
            return (), 0.0
        victims: list[Hint] = []
        loss = 0.0
        for victim in sorted(
            runner.hints or (), key=lambda h: (self._value(look, h) / _size(h, runner, look), h)
        ):
            if runner.executes(victim) or self._turn_is_nearer(look, victim, key):
                continue
            victims.append(victim)
            loss += self._value(look, victim)
            free += _size(victim, runner, look)
            if free >= 0:
                return tuple(victims), loss
        return None

    def _turn_is_nearer(self, look: _Look, victim: Hint, key: float) -> bool:
        """Return whether *victim* is the only copy of a model whose request is due before that of the newcomer."""
        head = look.state.queue.head(victim)
        if head is None or len(look.copies.get(victim, ())) > 1:
            return False
        return head.due + self.knobs.head_start * self._exec_s(look, victim) <= key


def _execute(state: State, candidate: _Candidate) -> Execute:
    head = state.queue.head(candidate.hint)
    assert head is not None
    return Execute(head.request, candidate.runner.runner, candidate.reason)


def _load(state: State, candidate: _Candidate) -> Move:
    assert candidate.hint is not None
    if candidate.runner.caps.loads and candidate.hint not in state.fleet.unloadable:
        return LoadModel(candidate.hint, candidate.runner.runner, candidate.evict, candidate.reason)
    return _execute(state, candidate)


def _copies(runners: Iterable[Runner]) -> dict[Hint, list[Runner]]:
    copies: dict[Hint, list[Runner]] = {}
    for runner in runners:
        for hint in (*(runner.hints or ()), *runner.loading):
            copies.setdefault(hint, []).append(runner)
    return copies


def _servable(look: _Look, runner: Runner) -> Iterable[Hint | None]:
    queue = look.state.queue
    yield None
    for hint in runner.hints or ():
        if queue.count(hint):
            yield hint


def _may_load(runner: Runner) -> bool:
    """Return whether a load could begin there now: as a job of its own, or as part of a cold execution."""
    return runner.can_load if runner.caps.loads else bool(runner.free_slots)


def _remaining(expected_s: float, elapsed_s: float) -> float:
    """Return how long a job still takes; one that is late is taken to need a tenth of what it took so far."""
    return max(expected_s - elapsed_s, 0.1 * elapsed_s, 0.0)


def _capacity(runner: Runner, look: _Look) -> float:
    """Return how many models of mean size fit the runner."""
    if runner.caps.vram_bytes is not None:
        return runner.caps.vram_bytes / look.state.costs.mean_size.value
    return float(runner.caps.models_max or max(len(runner.hints or ()), 1))


def _size(hint: Hint, runner: Runner, look: _Look) -> float:
    if runner.caps.vram_bytes is None:
        return 1.0
    return float(look.state.costs.size_bytes(hint) or look.state.costs.mean_size.value)


def _room(runner: Runner, look: _Look) -> float:
    """Return what is free: bytes where the runner counts bytes, else models; a runner without a limit has room."""
    limit = runner.caps.vram_bytes if runner.caps.vram_bytes is not None else runner.caps.models_max
    if limit is None:
        return float("inf")
    return limit - sum(_size(h, runner, look) for h in (*(runner.hints or ()), *runner.loading))
