"""
Which model is loaded next, and where.

Over models that somebody waits for and nobody loads, the one that is due first and finds room: where victims and
backlog cost least if nobody holds it; as a further copy only if what that saves exceeds its price and its victims.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import TypeAlias

from falctl.core.fleet import Runner
from falctl.core.policies.copies import saves, saves_at_most
from falctl.core.policies.look import Choice, Look, Reservation
from falctl.core.types import Hint

_Wish: TypeAlias = tuple[float, Hint, list[Runner]]
"""When a model is due, the model, and the runners on which a load of it may be worthwhile."""


def open_to_loads(look: Look) -> list[Runner]:
    """Return the runners where a load could begin now."""
    return [r for r in look.runners if r.may_begin_load]


def find_load(look: Look, open_runners: list[Runner]) -> Choice | None:
    """Return the load that is due first on one of *open_runners*."""
    if not open_runners:
        return None
    last_turn = look.room.last_turn(open_runners)
    for key, hint, runners in sorted(_wishes(look, open_runners), key=itemgetter(0, 1)):
        if key >= last_turn:
            break
        choice = _place(look, hint, key, _options(look, hint, runners))
        if choice is not None and len(runners) < len(open_runners):
            # That it is worthwhile where something has changed may be a matter of time: then it is so elsewhere, too.
            choice = _place(look, hint, key, _options(look, hint, open_runners))
        if choice is not None:
            return choice
    return None


def _options(look: Look, hint: Hint, runners: list[Runner]) -> list[Runner]:
    """Return those of *runners* to which a load of *hint* may go."""
    holders = look.copies.get(hint, [])
    options = [r for r in runners if r not in holders] if holders else runners
    if hint in look.state.fleet.unloadable:  # it is to be executed cold, so that its client hears why
        return [r for r in options if r.free_slots]
    return options


def is_blocked(look: Look, execute: Choice, open_runners: list[Runner]) -> bool:
    """Return whether a model that nobody holds is due before, and would find no room beside *execute*."""
    for key, hint in _unheld(look) if open_runners else ():
        if key < execute.key and not any(_fits(look, r, hint, execute) for r in open_runners):
            return True
    return False


def reservation(look: Look, open_runners: list[Runner]) -> Reservation | None:
    """
    Return the runner that is to run empty for a load; None: none has to.

    A runner of several slots may never be idle, and never have a victim that does not execute, by chance. So the
    first model that nobody holds and that finds no room anywhere keeps later work off the one that is emptiest.
    """
    coming = look.coming()
    wishes = [(k, h) for k, h in _unheld(look) if h not in coming and h not in look.state.fleet.unloadable]
    runners = [r for r in look.runners if r.slots > 1 and not r.loading]
    if not wishes or not runners:
        return None
    key, hint = min(wishes)
    runners = [r for r in runners if not look.state.avoids(hint, r)]
    able = (r for r in open_runners if not look.state.avoids(hint, r))
    if not runners or any(look.room.victims(r, hint, key) is not None for r in able):
        return None
    return Reservation(min(runners, key=lambda r: (len(r.in_use), r.runner)), key)


def _holds_for_base(look: Look, hint: Hint, runner: Runner) -> bool:
    """
    Return whether *hint* had better wait for a busy runner that holds its base than be loaded on *runner*.

    Not for longer than that can save, so that it waits for one load of its own at most.
    """
    queues, source = look.queues, runner.source(hint)
    if source == "base" or queues.nearest(hint) != "base":
        return False
    saved_s = queues.load_from_s(hint, source) - queues.load_from_s(hint, "base")
    head = look.state.queue.head(hint)
    assert head is not None, "nobody waits for it"
    rests = (queues.rest_s(r) for r in look.runners if r.source(hint) == "base")
    return queues.now - head.arrived_at < saved_s and min(rests) < saved_s


def delay_s(look: Look, hint: Hint, runner: Runner) -> float:
    """Return by how much work on *runner* is behind, and a load of *hint* there slower than the fastest anywhere."""
    queues = look.queues
    return queues.backlog_s(runner) + (queues.load_s(hint, runner) - queues.load_s(hint))


def _unheld(look: Look) -> Iterator[tuple[float, Hint]]:
    """Iterate over the models that wait and that nobody holds, with when they are due."""
    unlisted = look.state.fleet.unlisted
    for hint in look.state.queue.hints():
        if hint is not None and hint not in look.copies and hint not in unlisted:
            yield look.queues.load_key(hint), hint


def _fits(look: Look, runner: Runner, hint: Hint, execute: Choice) -> bool:
    if look.state.avoids(hint, runner):
        return False
    keep = execute.hint if runner is execute.runner else None
    return look.room.victims(runner, hint, look.queues.load_key(hint), keep=keep) is not None


def _wishes(look: Look, open_runners: list[Runner]) -> Iterator[_Wish]:
    """Iterate over models that wait, but for hopeless copies."""
    coming, unlisted = look.coming(), look.state.fleet.unlisted
    for hints, runners in look.to_load(open_runners):
        least_s = min(map(look.queues.backlog_s, runners))
        for hint in hints:
            if hint is None or hint in coming or hint in unlisted:
                continue
            if hint not in look.copies or saves_at_most(look, hint, least_s) > look.worth.price:
                yield look.queues.load_key(hint), hint, runners


def _place(look: Look, hint: Hint, key: float, options: list[Runner]) -> Choice | None:
    """Return where to load *hint* for the least cost; None: nowhere now, or holding is cheaper."""
    best: tuple[float, int, int, int] | None = None
    chosen: tuple[Runner, tuple[Hint, ...], float] | None = None
    for runner in options:
        if look.state.avoids(hint, runner) or (found := look.room.victims(runner, hint, key)) is None:
            continue
        loss = look.worth.horizon_s * found[1]
        crowd = len(look.state.fleet.held(runner)) + len(runner.loading)
        cost = loss + look.knobs.balance * delay_s(look, hint, runner)
        if best is None or (cost, len(found[0]), crowd, runner.runner) < best:
            best = (cost, len(found[0]), crowd, runner.runner)
            chosen = (runner, found[0], loss)
    if chosen is None:
        return None
    runner, victims, loss = chosen
    if hint not in look.copies:
        if _holds_for_base(look, hint, runner):
            return None
        return Choice(key, runner, hint, "nobody is warm for it", victims, loads=True)
    pays = saves(look, hint, runner) - look.worth.price >= loss
    return Choice(key, runner, hint, "a further copy pays", victims, loads=True) if pays else None
