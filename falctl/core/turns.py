"""
Who of those that want to draw on one device may begin, who waits for others to end, and who would wait in vain.

A *use* is a lease, and what its drawing takes. An *ask* is one that is not granted yet. It is granted when

    room        weights and drawing fit beside what the drawings that run are still expected to take. Of those that is,
                for each holder, the most that one of its uses needs beyond its weights that are there, for a request
                draws one thing at a time. What drawings hold already counts as part of that, for the device's
                allocator cannot say whose it is
    not apart   no other holder has the same model in another way, nor a part of it that comes and goes while one of
                the two draws: blocks that two threads put in place would be a wrong picture
    turn        nobody asked before and still waits. Who holds a lease already goes before those who hold none, who
                may be waiting for that very lease

What has no room now, and would have when the drawings of others end, waits; anything else is told at once. How a model
runs is decided by the room that it can have in the end, not by who happens to draw beside it.

Nobody waits for each other: a holder of leases may wait only as long as what it asks for is free once those have ended
who do not wait themselves, and those who then can, and so on. Of several that no order of ends would serve, the one that
asked last is told; its leases end, and the others go on. Uses that are *lasting* end with the app: nobody waits for them,
and nothing is expected of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from falctl.core.residency import Held, Part, Room, room_for

Verdict: TypeAlias = Literal["now", "wait", "never"]


@dataclass(frozen=True, slots=True)
class Use:
    """A lease that was granted, or is asked for."""

    name: str
    holder: Hashable
    """Who draws: one request."""
    need_bytes: int = 0
    """What it takes on the device, weights and drawing together."""
    parts: tuple[Part, ...] = ()
    """What it is made of."""
    way: Hashable = None
    """How it runs; equal for those that can be on the device at the same time. None: nothing is drawn with it."""
    moves: bool = False
    """Whether its parts come and go while it draws."""
    alone: bool = False
    """Nobody is to draw beside it: memory ran out when somebody may have."""
    lasting: bool = False
    """It does not end while requests are served."""


@dataclass(frozen=True, slots=True)
class Supply:
    """The device, and what is on it."""

    held: tuple[Held, ...]
    there: Mapping[str, Part]
    """The parts that are held, by key, as they are now."""
    free_bytes: int
    total_bytes: int
    reserve_bytes: int = 0
    drawn_bytes: int = 0
    """What is taken by drawings, and not free."""


def room_beside(ask: Use, uses: Sequence[Use], supply: Supply) -> Room:
    """Return what *ask* can have beside *uses*, of which those of its holder and the lasting ones are not waited for."""
    expected: dict[Hashable, int] = {}
    for use in uses:
        if use.holder != ask.holder and not use.lasting:
            expected[use.holder] = max(expected.get(use.holder, 0), _outstanding(use, ask, supply))
    counts = {held.name: 0 for held in supply.held}
    for use in uses:
        counts[use.name] = counts.get(use.name, 0) + 1
    room = room_for(
        ask.name,
        [replace(held, leases=counts[held.name]) for held in supply.held],
        free_bytes=supply.free_bytes,
        total_bytes=supply.total_bytes,
        reserve_bytes=supply.reserve_bytes,
    )
    return replace(room, expected_bytes=max(0, sum(expected.values()) - supply.drawn_bytes))


def room_at_last(ask: Use, line: Sequence[Use], uses: Sequence[Use], supply: Supply) -> Room:
    """Return what *ask* can have when those have ended who will; *line* are the asks that came before."""
    return room_beside(ask, *_at_last(ask, line, uses, supply))


def room_alone(ask: Use, uses: Sequence[Use], supply: Supply) -> Room:
    """Return what *ask* could have if nobody held anything who can be waited for, but its own holder."""
    left = [use for use in uses if use.lasting or use.holder == ask.holder]
    return room_beside(ask, left, _ended(supply) if len(left) < len(uses) else supply)


def verdict(ask: Use, line: Sequence[Use], uses: Sequence[Use], supply: Supply) -> Verdict:
    """Return whether *ask* is granted now, may wait, or would wait in vain; *line* are the asks that came before."""
    if (_holds(ask, uses) or not line) and _is_free(ask, uses, supply):
        return "now"
    left, then = _at_last(ask, line, uses, supply)
    return "wait" if _is_free(ask, left, then) else "never"


def _at_last(ask: Use, line: Sequence[Use], uses: Sequence[Use], supply: Supply) -> tuple[list[Use], Supply]:
    """Return what is left of *uses* when those have ended who will, and the device then."""
    waiting = [one for one in line if _holds(one, uses)] if _holds(ask, uses) else []
    stuck = {one.holder for one in waiting} | {ask.holder}
    while True:
        left = [use for use in uses if use.lasting or use.holder in stuck]
        then = _ended(supply) if len(left) < len(uses) else supply
        served = {one.holder for one in waiting if one.holder in stuck and _is_free(one, left, then)}
        if not served - {ask.holder}:
            return left, then
        stuck -= served - {ask.holder}


def _ended(supply: Supply) -> Supply:
    """Return *supply* as it is when some have ended: they give back what they drew, and the rest is expected."""
    return replace(supply, free_bytes=supply.free_bytes + supply.drawn_bytes, drawn_bytes=0)


def _is_free(ask: Use, uses: Sequence[Use], supply: Supply) -> bool:
    room = room_beside(ask, uses, supply)
    return ask.need_bytes <= room.most_bytes and not any(_apart(ask, use) for use in uses)


def _apart(ask: Use, use: Use) -> bool:
    """Return whether the two must not draw at the same time."""
    if ask.holder == use.holder or ask.lasting or use.lasting or ask.way is None or use.way is None:
        return False
    if ask.alone or use.alone or (ask.name == use.name and ask.way != use.way):
        return True
    keys = {part.key for part in ask.parts}
    return (ask.moves or use.moves) and any(part.key in keys for part in use.parts)


def _outstanding(use: Use, ask: Use, supply: Supply) -> int:
    """Return what *use* is still expected to take, its drawing included."""
    if use.name == ask.name and not use.moves:
        return max(
            0, use.need_bytes - sum(part.nbytes for part in use.parts)
        )  # the weights are the ask's, too
    there = (supply.there.get(part.key) for part in use.parts)
    return max(0, use.need_bytes - sum(p.nbytes for p in there if p is not None and p.tier == "vram"))


def _holds(ask: Use, uses: Sequence[Use]) -> bool:
    return any(use.holder == ask.holder for use in uses)
