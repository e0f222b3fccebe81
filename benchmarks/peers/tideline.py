"""
Tideline, the best prototype known before `auto`: one queue, late binding, loads and executions in order of due time.

It is `auto`'s ancestor with the parameters it was published with, kept apart so that tuning `auto` does not move it.
It peeks: the replay tells it true load times and sizes before the start, so it also knows when what runs now will
end. Execution times it learns.

    due time of an execution   arrival of the oldest request + C x execution
    due time of a load         arrival of the oldest request + C x (execution + load)
    a further copy             only if the waiting it saves and its value exceed its price and its victims' value
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.peers._bound import size
from benchmarks.peers._tideline_demand import Demand
from falctl.core.demand import erlang_b
from falctl.core.fleet import Runner
from falctl.core.policies.base import Execute, LoadModel, Move, State
from falctl.core.queue import Waiting
from falctl.core.types import Hint, RequestId, RunnerId
from falctl.replay.trace import Job
from falctl.replay.world import sizes_of


@dataclass(frozen=True, slots=True)
class Knobs:
    """As published; *theta* is the weight of the client signal."""

    c: float = 6.0
    gamma: float = 35.0
    phi: float = 16.0
    beta: float = 3.0
    theta: float = 0.7
    balance: float = 1.0
    exec_prior_s: float = 4.0


@dataclass(slots=True)
class _Look:
    """What holds during one decision."""

    now: float
    state: State
    runners: list[Runner]
    resident: dict[RunnerId, list[Hint]]
    copies: dict[Hint, list[RunnerId]]
    overlap: bool
    values: dict[Hint, float] = field(default_factory=dict)
    backlog: dict[RunnerId, float] | None = None


@dataclass(frozen=True, slots=True)
class _Load:
    key: float
    runner: Runner
    hint: Hint
    victims: tuple[Hint, ...]


class Tideline:
    """See the module."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self.knobs = knobs or Knobs()
        self.demand = Demand(self.knobs.theta)
        self._jobs: Sequence[Job] = ()
        self._load_s: dict[Hint, float] = {}
        self._mean_size = 1.0
        self._waiting: dict[Hint, deque[Waiting]] = {}
        self._seen = 0
        self._running: list[tuple[float, RunnerId, RequestId]] = []
        self._load_end: dict[RunnerId, float] = {}
        self._exec_s: dict[Hint, float] = {}
        self._mean_exec_s = self.knobs.exec_prior_s
        self._mean_load_s: float | None = None
        self._blocked: float | None = None

    def foresee(self, jobs: Sequence[Job]) -> None:
        """Take in the truth."""
        self._jobs = jobs
        self._load_s = {job.hint: job.load_s for job in jobs}
        sizes = sizes_of(jobs)
        self._mean_size = sum(sizes[job.hint] for job in jobs) / len(jobs)

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move."""
        self._hear(state, now)
        look = _look(state, now)
        execute = self._best_execute(look)
        load = None
        if execute is None or not look.overlap or self._is_blocked_before(look, execute[0]):
            load = self._best_load(look)
        if load is not None and (execute is None or load.key < execute[0]):
            self._load_end[load.runner.runner] = now + self._load_s[load.hint]
            return LoadModel(load.hint, load.runner.runner, load.victims, "least due time")
        if execute is None:
            return None
        _, runner, hint = execute
        waiting = self._waiting[hint].popleft()
        if not self._waiting[hint]:
            del self._waiting[hint]
        self._running.append((now + self._jobs[int(waiting.request)].exec_s, runner.runner, waiting.request))
        return Execute(waiting.request, runner.runner, "least due time")

    # --- what has happened -----------------------------------------------------------------------

    def _hear(self, state: State, now: float) -> None:
        """Learn from what has come and what has ended since the last decision."""
        for end in sorted(run for run in self._running if run[2] not in _in_use(state, run[1])):
            self._running.remove(end)
            job = self._jobs[int(end[2])]
            known = self._exec_s.get(job.hint, job.exec_s)
            self._exec_s[job.hint] = 0.9 * known + 0.1 * job.exec_s
            self._mean_exec_s += 0.01 * (job.exec_s - self._mean_exec_s)
        if len(state.queue) > sum(map(len, self._waiting.values())):
            for waiting in [w for w in state.queue if w.order > self._seen]:
                self._arrived(waiting, now)

    def _arrived(self, waiting: Waiting, now: float) -> None:
        self._seen = waiting.order
        hint = waiting.hint
        assert hint is not None, "Tideline is for requests with a hint"
        self._waiting.setdefault(hint, deque()).append(waiting)
        load_s = self._load_s[hint]
        known = self._mean_load_s
        self._mean_load_s = load_s if known is None else known + 0.01 * (load_s - known)
        self.demand.arrived(hint, waiting.client, now)

    # --- keys and values -------------------------------------------------------------------------

    def _exec(self, hint: Hint) -> float:
        return self._exec_s.get(hint, self.knobs.exec_prior_s)

    def _exec_key(self, hint: Hint) -> float:
        return self._waiting[hint][0].arrived_at + self.knobs.c * self._exec(hint)

    def _load_key(self, hint: Hint) -> float:
        return self._waiting[hint][0].arrived_at + self.knobs.c * (self._exec(hint) + self._load_s[hint])

    def _copy_value(self, hint: Hint, copies: int) -> float:
        rate = self.demand.rate(hint)
        offered = self.knobs.beta * rate * self._exec(hint)
        return rate * self._load_s[hint] * (erlang_b(offered, copies - 1) - erlang_b(offered, copies))

    def _value(self, look: _Look, hint: Hint) -> float:
        if hint not in look.values:
            look.values[hint] = self._copy_value(hint, len(look.copies[hint]))
        return look.values[hint]

    def _victims(
        self, look: _Look, runner: Runner, hint: Hint, key: float
    ) -> tuple[tuple[Hint, ...], float] | None:
        resident = look.resident[runner.runner]
        limit = runner.caps.vram_bytes if runner.caps.vram_bytes is not None else runner.caps.models_max
        assert limit is not None, "Tideline is for runners with a known limit"
        room = limit - sum(size(h, runner, look.state) for h in resident) - size(hint, runner, look.state)
        victims: list[Hint] = []
        loss = 0.0
        order = sorted((self._value(look, h) / size(h, runner, look.state), h) for h in resident if room < 0)
        for _, victim in order:
            if room >= 0:
                break
            if victim in runner.loading or runner.executes(victim) or self._is_nearer(look, victim, key):
                continue
            victims.append(victim)
            loss += self._value(look, victim)
            room += size(victim, runner, look.state)
        return (tuple(victims), loss) if room >= 0 else None

    def _is_nearer(self, look: _Look, victim: Hint, key: float) -> bool:
        return victim in self._waiting and len(look.copies[victim]) == 1 and self._exec_key(victim) <= key

    def _work(self, look: _Look, hint: Hint) -> float:
        waiting = len(self._waiting.get(hint, ()))
        return waiting * self._exec(hint) / len(look.copies[hint]) if waiting else 0.0

    def _backlog(self, look: _Look) -> dict[RunnerId, float]:
        if look.backlog is None:
            ends = {runner: at for at, runner, _ in self._running}
            look.backlog = {}
            for runner in look.runners:
                busy_s = max(0.0, ends[runner.runner] - look.now) if runner.in_use else 0.0
                if runner.loading and not look.overlap:
                    busy_s = max(busy_s, self._load_end[runner.runner] - look.now)
                work_s = sum(self._work(look, h) for h in look.resident[runner.runner])
                look.backlog[runner.runner] = busy_s + work_s
        return look.backlog

    # --- choices ---------------------------------------------------------------------------------

    def _is_blocked_before(self, look: _Look, key: float) -> bool:
        del look
        return self._blocked is not None and self._blocked < key

    def _best_execute(self, look: _Look) -> tuple[float, Runner, Hint] | None:
        best: tuple[float, Hint, list[Runner]] | None = None
        for runner in look.runners:
            if not runner.free_slots:
                continue
            for hint in look.resident[runner.runner]:
                if hint not in self._waiting or hint in runner.loading:
                    continue
                key = self._exec_key(hint)
                if best is None or key < best[0]:
                    best = key, hint, [runner]
                elif hint == best[1]:
                    best[2].append(runner)
        if best is None:
            return None
        key, hint, holders = best
        return key, min(holders, key=lambda r: self._wanted(look, r, hint)), hint

    def _wanted(self, look: _Look, runner: Runner, hint: Hint) -> tuple[float, float]:
        others = [h for h in look.resident[runner.runner] if h != hint]
        return sum(self._work(look, h) for h in others), sum(map(self.demand.share, others))

    def _best_load(self, look: _Look) -> _Load | None:
        self._blocked = None
        free = [r for r in look.runners if r.can_load]
        best: _Load | None = None
        for hint in self._waiting if free else ():
            holders = look.copies.get(hint, [])
            if len(holders) == len(look.runners) or any(hint in r.loading for r in look.runners):
                continue
            key = self._load_key(hint)
            options = [r for r in free if r.runner not in holders]
            if options and (best is None or key < best.key):
                best = self._place(look, hint, options, key) or best
        return best

    def _place(self, look: _Look, hint: Hint, options: list[Runner], key: float) -> _Load | None:
        knobs, holders, backlog = self.knobs, look.copies.get(hint, []), self._backlog(look)
        gap_s = self.demand.gap_s or 1.0
        horizon_s = knobs.phi * self._slots(look) * gap_s
        gain = 0.0
        if holders:
            mean_load_s = self._mean_load_s or 0.0
            used = min(1.0, self._mean_exec_s / max(gap_s, 1e-9) / len(look.runners))
            price = knobs.gamma * used * mean_load_s * min(1.0, mean_load_s / self._mean_exec_s)
            gain = horizon_s * self._copy_value(hint, len(holders) + 1) - price
            if max(self._saves(look, hint, r) for r in options) + gain < 0:
                return None
        found = []
        for runner in options:
            if (victims := self._victims(look, runner, hint, key)) is not None:
                cost = horizon_s * victims[1] + knobs.balance * backlog[runner.runner]
                found.append((cost, runner.runner, runner, victims))
        if not found:
            if not holders and (self._blocked is None or key < self._blocked):
                self._blocked = key
            return None
        _, _, runner, (chosen, loss) = min(found, key=lambda entry: entry[:2])
        if holders and self._saves(look, hint, runner) + gain < horizon_s * loss:
            return None
        return _Load(key, runner, hint, chosen)

    def _saves(self, look: _Look, hint: Hint, runner: Runner) -> float:
        """Return the request-seconds that a copy on *runner* saves: part of the work moves there and ends earlier."""
        holders, backlog, exec_s = look.copies[hint], self._backlog(look), self._exec(hint)
        drained_s = sum(backlog[r] for r in holders) / len(holders)
        start_s = max(self._load_s[hint], backlog[runner.runner])
        share_s = (drained_s - start_s) * len(holders) / (len(holders) + 1)
        moved_s = min(len(self._waiting[hint]) * exec_s, share_s)
        return moved_s / exec_s * (drained_s - start_s) if moved_s > 0 else 0.0

    def _slots(self, look: _Look) -> float:
        caps = look.runners[0].caps
        each = caps.models_max or 0 if caps.vram_bytes is None else caps.vram_bytes / self._mean_size
        return each * len(look.runners)


def _look(state: State, now: float) -> _Look:
    runners = list(state.fleet.runners.values())
    resident = {r.runner: sorted({*(r.hints or ()), *r.loading}) for r in runners}
    copies: dict[Hint, list[RunnerId]] = {}
    for runner, hints in resident.items():
        for hint in hints:
            copies.setdefault(hint, []).append(runner)
    return _Look(now, state, runners, resident, copies, all(r.caps.overlaps for r in runners))


def _in_use(state: State, runner: RunnerId) -> dict[RequestId, object]:
    view = state.fleet.runners.get(runner)
    return {} if view is None else dict(view.in_use)
