"""What an execution that has ended teaches about costs, also when its host could not tell load from run."""

from __future__ import annotations

from falctl.core.costs import Costs
from falctl.core.events import Released
from falctl.core.fleet import Runner, Running
from falctl.core.sources import Source, Tier


def learn_release(costs: Costs, runner: Runner, running: Running, event: Released, *, now: float) -> None:
    """
    Learn from *event*. Nothing is learnt from what failed or was cancelled (``exec_s`` is None).

    A host that cannot tell the load (an app that only gives hints) reports one figure; if the runner was not warm,
    what exceeds the known execution is taken for the load.
    """
    hint = running.hint
    if hint is None or event.exec_s is None:
        return
    card = runner.card
    if event.load_s is not None:
        costs.executed(hint, card, event.exec_s)
        if event.load_s > 0 and event.tier is not None:
            costs.loaded(hint, source_of(running.source, event.tier), event.load_s)
    elif running.warm:
        costs.executed(hint, card, event.exec_s)
        costs.settle(hint, card)
    elif costs.knows(hint):
        costs.loaded(hint, "disk", max(event.exec_s - costs.exec_s(hint, card), 0.0))
    else:
        costs.remember_first(hint, event.exec_s)


def source_of(expected: Source, told: Tier) -> Source:
    """Return what a load teaches about: its host tells disk from RAM, and we know which base was there beside it."""
    return expected if expected == "base" else told
