"""What a runner's memory holds at all, whatever it evicts: bytes or models, beside what is pinned there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from falctl.core.costs import Costs
from falctl.core.fleet import Runner
from falctl.core.types import Hint


def may_take(runner: Runner, hint: Hint, *, fleet: Collection[Runner], costs: Costs) -> bool:
    """Return whether *runner*, of a *fleet*, can make room for *hint*, by what is known."""
    return not (pinned_out(runner, hint, costs) or outgrows(hint, runner, others=fleet, costs=costs))


def outgrows(hint: Hint, runner: Runner, *, others: Iterable[Runner], costs: Costs) -> bool:
    """Return whether no room that *runner* could make is enough for *hint*, by what is known; not if it holds it."""
    size, limit = size_on(hint, runner, costs), runner.caps.vram_bytes
    if limit is None or size <= limit or hint in (runner.hints or ()):
        return False
    return not is_squeezed(hint, size, runner, others=others, costs=costs)


def pinned_out(runner: Runner, hint: Hint, costs: Costs) -> bool:
    """Return whether what is pinned on *runner* leaves no room there for *hint*, which it does not hold."""
    if not runner.pinned or hint in (runner.hints or ()) or hint in runner.loading or runner.executes(hint):
        return False
    free = beside_pins(runner, hint, costs)
    known = runner.caps.vram_bytes is None or costs.size_bytes(hint) is not None
    size = size_on(hint, runner, costs)
    return size > free if known and not _runs_in_part(size, runner) else free <= 0


def beside_pins(runner: Runner, hint: Hint, costs: Costs) -> float:
    """Return what there is for *hint* once all has left that may: it may be pinned itself, and not be there yet."""
    return limit_of(runner) - sum(size_on(pinned, runner, costs) for pinned in runner.pinned - {hint})


def limit_of(runner: Runner) -> float:
    """Return what fits: bytes where the runner counts bytes, else models; without a limit there is always room."""
    limit = runner.caps.vram_bytes if runner.caps.vram_bytes is not None else runner.caps.models_max
    return float("inf") if limit is None else float(limit)


def cap_of(runner: Runner) -> float:
    """Return how many models there may be where `limit_of` counts bytes."""
    models_max = runner.caps.models_max
    return float("inf") if runner.caps.vram_bytes is None or models_max is None else float(models_max)


def size_on(hint: Hint, runner: Runner, costs: Costs) -> float:
    """Return what a model takes of what `limit_of` counts, beside its base if that is there."""
    limit = runner.caps.vram_bytes
    if limit is None:
        return 1.0
    size = float(costs.size_bytes(hint) or 0)
    if not size:
        # One of unknown size is tried, also where the mean would not fit.
        pinned = sum(costs.size_bytes(other) or 0 for other in runner.pinned)
        size = min(costs.mean_size.value, max(float(limit - pinned), 1.0))
    base = runner.base(hint) if hint in (runner.hints or ()) else runner.kin(hint)
    if base is not None:
        return max(size - (costs.size_bytes(base) or size), 1.0)
    return size


def is_squeezed(hint: Hint, size: float, runner: Runner, *, others: Iterable[Runner], costs: Costs) -> bool:
    """
    Return whether *runner* would empty its card for what it cannot hold whole: it can, and no other card does.

    A card whose pins leave no room for it is none that does.
    """
    if not _runs_in_part(size, runner):
        return False
    limits = ((other.caps.vram_bytes, other) for other in others)
    return not any((n is None or size <= n) and not pinned_out(other, hint, costs) for n, other in limits)


def _runs_in_part(size: float, runner: Runner) -> bool:
    """Return whether *runner* runs what is larger than its card: how, and beside what, it decides by itself."""
    return (runner.caps.vram_bytes or 0) < size <= (runner.caps.run_bytes or 0)
