"""One model that a cache knows, and one load of it; guarded by the lock of their `Holdings`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from falctl.core.fit import How
from falctl.core.keep_alive import keep_until
from falctl.core.residency import HALF_LIFE_S, Held, Part, Resident, Tier, Verdict, tier_of
from falctl.core.turns import Use
from falctl.toolkit.cache_hooks import WHOLE, Admitted

_RAM_BYTES_S: Final = 10e9
_DISK_BYTES_S: Final = 2e9
"""What a move costs before one of its kind was measured: PCIe 4.0 and one NVMe drive, roughly."""
_STEPS: Final[Mapping[Tier, int]] = {"disk": 0, "ram": 1, "vram": 2}
"""How often each byte was moved to be in a tier."""


@dataclass(eq=False, slots=True)
class Load:
    """One load that is under way, or over."""

    to: Literal["vram", "ram"]
    verdict: Verdict
    done: threading.Event = field(default_factory=threading.Event)
    thread: int | None = None
    """Which performs it; None: none yet."""
    error: BaseException | None = None
    how: How = "whole"
    """How it is to be on the device."""
    begun: Mapping[str, Tier] = field(default_factory=dict)
    """Where each part was when it began, by key; on the disk, if that is not known."""
    done_share: float = 0.0
    """The most that it was seen to have done."""

    def share(self, parts: Iterable[Part], moved: Mapping[str, int]) -> float | None:
        """
        Return how much of it is done, 0 to 1, never less than before; None: it moves no bytes that are known.

        Of the bytes that have to be read and those that have to be copied, one like the other, how many were. The time
        that libraries take to make modules counts for nothing: it is a fraction of a second of a load from the disk,
        and nobody can tell how much of it is over. What comes to the device only while the model runs is not waited for.
        """
        goal = _STEPS["vram" if self.to == "vram" and self.how == "whole" else "ram"]
        needed = done = 0
        for part in parts:
            begun = _STEPS[self.begun.get(part.key, "disk")]
            need_bytes = max(0, goal - begun) * part.nbytes
            done_bytes = max(0, _STEPS[part.tier] - begun) * part.nbytes + moved.get(part.key, 0)
            needed, done = needed + need_bytes, done + min(need_bytes, done_bytes)
        if needed == 0:
            return None
        self.done_share = max(self.done_share, done / needed)
        return self.done_share


@dataclass(eq=False, slots=True)
class Claim:
    """A lease that was granted."""

    entry: Entry
    use: Use
    load: Load | None = None
    """What brings the model to where it is wanted; None: it is there."""
    mine: bool = False
    """Whether the one who asked is to load it."""
    admitted: Admitted = WHOLE


@dataclass(eq=False, slots=True)
class Entry:
    """A model that somebody asked for."""

    name: str
    used_at: float
    leases: list[Use] = field(default_factory=list)
    uses: float = 0.0
    clock: float = 0.0
    keep_alive_s: float | None = None
    parts: tuple[Part, ...] = ()
    """What it is made of, as when it was constructed, or will be, as far as that is known."""
    constructed: bool = False
    """Whether its modules stand."""
    placed: Admitted | None = None
    """How it is on the device, ready to run; None: it is not."""
    model: Any = None
    """What runs; while it is placed."""
    load: Load | None = None
    load_s: float = 0.0
    costs: dict[Verdict, float] = field(default_factory=dict)
    """Seconds of the last load from each tier."""

    def lease(self, use: Use, *, now: float) -> None:
        """Note one more lease."""
        self.leases.append(use)
        self.uses = self.uses * 0.5 ** ((now - self.used_at) / HALF_LIFE_S) + 1.0
        self.used_at = now

    def held(self, parts: tuple[Part, ...], *, pinned: bool) -> Held:
        """Return it as decisions see it, made of *parts*."""
        return Held(
            self.name,
            parts,
            used_at=self.used_at,
            leases=len(self.leases),
            pinned=pinned,
            uses=self.uses,
            clock=self.clock,
            reload_s=_reload_s(self, parts),
            keep_alive_s=self.keep_alive_s,
        )

    def seen(self, parts: tuple[Part, ...], *, pinned: bool, moved: Mapping[str, int]) -> Resident:
        """Return it as others see it, made of *parts*, of which so many bytes have *moved*."""
        tier: Tier = "vram" if self.placed is not None else _off_device(parts)
        held = self.held(parts, pinned=pinned)
        return Resident(
            self.name,
            "ready" if self.load is None else "loading",
            self.used_at,
            len(self.leases),
            self.load_s,
            tier=tier,
            device_bytes=held.on_device(),
            host_bytes=sum(p.nbytes for p in parts if p.host and p.tier != "disk"),
            pinned=pinned,
            loaded=None if self.load is None else self.load.share(parts, moved),
            keep_until=keep_until(held, tier=tier),
        )


def _off_device(parts: Iterable[Part]) -> Tier:
    """Return the tier of a model that is not ready to run, even if others have brought its parts to the device."""
    return "disk" if tier_of(parts) == "disk" else "ram"


def _reload_s(entry: Entry, parts: Iterable[Part]) -> float:
    source: Verdict = "ram" if all(p.host for p in parts) else "disk"
    if source in entry.costs:
        return entry.costs[source]
    return sum(p.nbytes / (_RAM_BYTES_S if p.host else _DISK_BYTES_S) for p in parts)
