"""
Which weights leave a runner's device and its host memory, decided over values.

A model that somebody leases or that is pinned keeps its parts, also those that others share with it. Of the rest those
leave first whose return costs least for the bytes they free: GreedyDual-Size, H = clock + uses x seconds of a reload /
bytes, where the clock rises to the H of whatever left, so that what was dear once does not stay for ever, and where
uses halve with time. No more leaves than must: a set of victims none of which could be spared.

Where bytes are not known a store holds a number of models, and the least recently used leaves first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from falctl.core.sizes import size_text
from falctl.core.types import GiB

Tier: TypeAlias = Literal["vram", "ram", "disk"]
"""Where bytes are: on the device; in host memory; only in their files, while the modules stand (a skeleton)."""

Verdict: TypeAlias = Literal["hit", "join", "ram", "disk"]
"""How a lease got its model: it was there, another lease was loading it, or this one loaded it, and from where."""

HALF_LIFE_S: Final = 1800.0
"""After how long a use counts half: about a sitting at a workstation."""


@dataclass(frozen=True, slots=True)
class Part:
    """One component's weights, which several models may share."""

    key: str
    nbytes: int
    """What it takes on the device, and in host memory."""
    tier: Tier
    host: bool = True
    """Whether host memory has its bytes, too: leaving the device costs nothing then."""
    once: bool = False
    """Used once in a job and not in each step, as a text encoder is: the first of its model to leave."""


@dataclass(frozen=True, slots=True)
class Held:
    """A model that a cache knows, as decisions see it. Instants are in seconds of one clock."""

    name: str
    parts: tuple[Part, ...]
    used_at: float
    leases: int = 0
    pinned: bool = False
    uses: float = 1.0
    """How often it was leased, as of *used_at*; halved with time."""
    clock: float = 0.0
    """GreedyDual's clock when it was used last."""
    reload_s: float = 0.0
    """What it costs to bring all of it back to the device."""
    keep_alive_s: float | None = None
    """How long it may idle in each tier; None: for ever."""

    @property
    def kept(self) -> bool:
        """Return whether it must stay as it is."""
        return self.pinned or self.leases > 0

    def on_device(self) -> int:
        """Return the bytes of it that are on the device."""
        return sum(p.nbytes for p in self.parts if p.tier == "vram")


@dataclass(frozen=True, slots=True)
class Resident:
    """A model in a cache, or on its way in, as it was at one moment."""

    name: str
    state: Literal["loading", "ready"]
    used_at: float
    leases: int
    load_s: float = 0.0
    """How long its last load took; 0 before the first is over."""
    tier: Tier = "vram"
    """The lowest that one of its parts is in: "ram" if all that lacks on the device is in host memory."""
    device_bytes: int = 0
    """Of the device, shared parts counted in each model that has them."""
    host_bytes: int = 0
    """Of host memory, likewise."""
    pinned: bool = False
    loaded: float | None = None
    """How much of a load under way is done, 0 to 1; None: nobody can tell, or none is."""
    keep_until: float | None = None
    """When it leaves its tier unless it is used before; None: it does not."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a device could give to one model, in bytes, and who has the rest."""

    free_bytes: int
    total_bytes: int
    reserve_bytes: int = 0
    """To be left free for others; where they have taken of it, idle models make up for that."""
    own_bytes: int = 0
    """Of the model itself, on the device already."""
    idle_bytes: int = 0
    """Of models that may be evicted."""
    pinned: tuple[tuple[str, int], ...] = ()
    """Name and bytes on the device of each pinned model that nobody uses."""
    leased: tuple[tuple[str, int], ...] = ()
    """Likewise of each that somebody uses."""
    expected_bytes: int = 0
    """What the drawings that run now are still expected to take."""

    @property
    def most_bytes(self) -> int:
        """Return what the model can have, weights that are there and drawing together, if all that may leaves."""
        kept_free = self.reserve_bytes + self.expected_bytes
        return max(0, self.own_bytes + self.idle_bytes + self.free_bytes - kept_free)

    def lacking(self, need_bytes: int) -> int:
        """Return how many bytes must be evicted for a model that needs *need_bytes* in all; 0: none."""
        kept_free = self.reserve_bytes + self.expected_bytes
        return max(0, need_bytes - self.own_bytes - self.free_bytes + kept_free)

    def told(self, need_bytes: int) -> str:
        """Return for a person why *need_bytes* can or cannot be had."""
        text = f"it needs {size_text(need_bytes)}, and can have {size_text(self.most_bytes)} of {size_text(self.total_bytes)}"
        for what, models in (("in use", self.leased), ("pinned", self.pinned)):
            if models:
                text += f"; {what}: " + ", ".join(f"{name} ({size_text(size)})" for name, size in models)
        if self.expected_bytes:
            text += f"; to be taken by what is drawn now: {size_text(self.expected_bytes)}"
        return text


@dataclass(frozen=True, slots=True)
class Plan:
    """The keys of the parts that are to leave, in that order, and what GreedyDual's clock is after it."""

    keys: tuple[str, ...]
    clock: float


def room_for(
    name: str, held: Sequence[Held], *, free_bytes: int, total_bytes: int, reserve_bytes: int
) -> Room:
    """Return what the model *name* can have, whether or not it is among *held*."""
    others = [m for m in held if m.name != name]
    own = [replace(m, leases=max(m.leases, 1)) for m in held if m.name == name]
    kept = [m for m in others if m.kept and m.on_device()]
    return Room(
        free_bytes=free_bytes,
        total_bytes=total_bytes,
        reserve_bytes=reserve_bytes,
        own_bytes=sum(m.on_device() for m in own),
        idle_bytes=sum(p.nbytes for p in loose((*others, *own), tier="vram")),
        pinned=tuple((m.name, m.on_device()) for m in kept if not m.leases),
        leased=tuple((m.name, m.on_device()) for m in kept if m.leases),
    )


def loose(held: Iterable[Held], *, tier: Tier) -> tuple[Part, ...]:
    """Return the parts in *tier* that no model has which is leased or pinned, in the order of *held*."""
    held = tuple(held)
    stays = {p.key for m in held if m.kept for p in m.parts}
    found = {p.key: p for m in held for p in m.parts if p.tier == tier and p.key not in stays}
    return tuple(found.values())


def value(model: Held, *, now: float) -> float:
    """Return GreedyDual's H, in seconds for each GiB; a model without bytes counts as one of a GiB."""
    size = sum(p.nbytes for p in model.parts) or GiB
    uses: float = model.uses * 0.5 ** (max(0.0, now - model.used_at) / HALF_LIFE_S)
    return model.clock + uses * model.reload_s * GiB / size


def make_room(
    lacking_bytes: int,
    held: Iterable[Held],
    *,
    now: float,
    tier: Tier = "vram",
    first: Collection[str] = (),
) -> Plan | None:
    """
    Return which parts in *tier* are to leave it so that *lacking_bytes* turn free; None: all that may do not suffice.

    A part that only models of *first* have leaves before any other.
    """
    held = tuple(held)
    ranked: dict[tuple[bool, float], list[Part]] = {}
    for part in loose(held, tier=tier):
        having = [m for m in held if any(p.key == part.key for p in m.parts)]
        named = all(m.name in first for m in having)
        worth = max(value(m, now=now) for m in having)
        ranked.setdefault((not named, worth), []).append(part)
    chosen: list[tuple[float, Part]] = []
    left = lacking_bytes
    for (_, worth), parts in sorted(ranked.items(), key=lambda group: group[0]):
        leaving = _fewest(parts, left)
        chosen += [(worth, part) for part in leaving]
        left -= sum(part.nbytes for part in leaving)
    if left > 0:
        return None
    chosen = _spared(chosen, surplus=-left)
    return Plan(tuple(p.key for _, p in chosen), max((worth for worth, _ in chosen), default=0.0))


def _fewest(parts: Iterable[Part], lacking_bytes: int) -> list[Part]:
    """Return parts of equal worth that free *lacking_bytes* with little more, or all of them."""
    waiting = sorted(parts, key=lambda p: (not p.once, -p.nbytes))
    leaving: list[Part] = []
    while waiting and lacking_bytes > 0:
        enough = [p for p in waiting if p.nbytes >= lacking_bytes and p.once == waiting[0].once]
        part = min(enough, key=lambda p: p.nbytes) if enough else waiting[0]
        waiting.remove(part)
        leaving.append(part)
        lacking_bytes -= part.nbytes
    return leaving


def _spared(chosen: list[tuple[float, Part]], *, surplus: int) -> list[tuple[float, Part]]:
    """Return *chosen* without what need not leave after all, the dearest spared first."""
    for entry in reversed(tuple(chosen)):
        if entry[1].nbytes <= surplus:
            surplus -= entry[1].nbytes
            chosen.remove(entry)
    return chosen


def tier_of(parts: Iterable[Part]) -> Tier:
    """Return the lowest tier that one of *parts* is in; "disk" for none."""
    tiers = {p.tier for p in parts}
    if not tiers or "disk" in tiers:
        return "disk"
    return "ram" if "ram" in tiers else "vram"


def victims(residents: Iterable[Resident], *, models_max: int, incoming: int) -> tuple[str, ...]:
    """
    Return the models to drop, in that order, so that *incoming* more make at most *models_max*; 0: there is no bound.

    Fewer than that are returned when the others are leased or pinned. Of two used at the same instant the one that
    comes first in *residents* leaves first.
    """
    present = tuple(residents)
    surplus = max(0, len(present) + incoming - models_max) if models_max else 0
    idle = sorted((r for r in present if not (r.leases or r.pinned)), key=lambda r: r.used_at)
    return tuple(r.name for r in idle[:surplus])
