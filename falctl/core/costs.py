"""
What a load and an execution cost, learnt from those that have happened.

Every figure is the product of two that are learnt apart: seconds of a hint on a card of speed 1, and the speed of
the card's model. So a hint seen on one card says what it will cost on another, and a slow or throttled card is
known from whatever it does. One observation moves an estimate by its weight at most, and one that is off by more
than `CLIP` counts as off by `CLIP`, so that a single stall does not spoil it.

Priors for what has not happened yet: an execution takes the fleet's mean; a load takes its bytes over the measured
bandwidth of its tier if the size is declared, else the fleet's mean load.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from falctl.core.types import Hint

WEIGHT: Final = 0.1
"""Weight of the newest observation of one hint once there are enough; before, each counts alike."""
FLEET_WEIGHT: Final = 0.01
"""The same for means over the whole fleet and for the speed of a card's model."""
CLIP: Final = 4.0
HINTS_MAX: Final = 4096
"""Hints whose costs are remembered; the one not seen for longest is forgotten first."""

EXEC_PRIOR_S: Final = 4.0
LOAD_PRIOR_S: Final = 8.0
SIZE_PRIOR_BYTES: Final = 7e9
"""Before anything has happened: SDXL at 30 steps on a desktop card, loaded from a local SSD."""


@dataclass(slots=True)
class Mean:
    """A robust running mean of positive numbers. ``n`` is 0 before the first."""

    value: float = 0.0
    n: int = 0

    def add(self, x: float, weight: float) -> None:
        """Take in *x*, clipped to `CLIP` times the mean so far either way."""
        self.n += 1
        if self.n == 1:
            self.value = x
            return
        if self.n > 2:  # the first two may both be odd; from then on a stray is seen as one
            x = min(max(x, self.value / CLIP), self.value * CLIP)
        self.value += max(weight, 1.0 / self.n) * (x - self.value)


@dataclass(slots=True)
class Costs:
    """All that is learnt. Keys are a hint, a tier, or a GPU model's name; sizes in bytes, costs in seconds."""

    _exec: OrderedDict[Hint, Mean] = field(default_factory=OrderedDict)
    _load: OrderedDict[tuple[Hint, str], Mean] = field(default_factory=OrderedDict)
    _size: OrderedDict[Hint, int] = field(default_factory=OrderedDict)
    _first: OrderedDict[Hint, float] = field(default_factory=OrderedDict)
    """First runs, load included, of hints that have not run warm yet."""
    _speed: dict[str, Mean] = field(default_factory=dict)
    _s_per_byte: dict[str, Mean] = field(default_factory=dict)
    mean_size: Mean = field(default_factory=lambda: Mean(SIZE_PRIOR_BYTES, 1))
    mean_exec: Mean = field(default_factory=lambda: Mean(EXEC_PRIOR_S, 1))
    mean_load: Mean = field(default_factory=lambda: Mean(LOAD_PRIOR_S, 1))

    # --- learning --------------------------------------------------------------------------------

    def executed(self, hint: Hint, gpu: str, exec_s: float) -> None:
        """Learn from an execution that found its model resident."""
        self.mean_exec.add(exec_s, FLEET_WEIGHT)
        known = self._exec.get(hint)
        if known is not None and known.n > 1 and known.value > 0:
            speed = self._speed.setdefault(gpu, Mean(1.0, 1))
            if (
                len(self._speed) > 1
            ):  # among cards of one model speed and cost could only drift against each other
                speed.add(max(exec_s, 1e-9) / known.value, FLEET_WEIGHT)
        _entry(self._exec, hint).add(exec_s / self.speed(gpu), WEIGHT)

    def loaded(self, hint: Hint, tier: str, load_s: float) -> None:
        """Learn from a load that has ended well."""
        self.mean_load.add(load_s, FLEET_WEIGHT)
        _entry(self._load, (hint, tier)).add(load_s, WEIGHT)
        if size := self._size.get(hint):
            self._s_per_byte.setdefault(tier, Mean()).add(load_s / size, 0.05)

    def remember_first(self, hint: Hint, both_s: float) -> None:
        """Note a cold run of unknown parts, until a warm one tells them apart; see `settle`."""
        self._first.setdefault(hint, both_s)
        _trim(self._first)

    def settle(self, hint: Hint, gpu: str) -> None:
        """Learn the load of the first run, now that a warm run is known."""
        if (both_s := self._first.pop(hint, None)) is not None:
            self.loaded(hint, "disk", max(both_s - self.exec_s(hint, gpu), 0.0))

    def declare(self, hint: Hint, size_bytes: int) -> None:
        """Note how large a model is."""
        self._size[hint] = size_bytes
        self.mean_size.add(size_bytes, FLEET_WEIGHT)
        _trim(self._size)

    # --- asking ----------------------------------------------------------------------------------

    def exec_s(self, hint: Hint, gpu: str = "") -> float:
        """Return what an execution should take on a card of model *gpu*; without a name, on one of speed 1."""
        known = self._exec.get(hint)
        return (known.value if known is not None else self.mean_exec.value) * self.speed(gpu)

    def knows(self, hint: Hint) -> bool:
        """Return whether an execution of *hint* has been seen."""
        return hint in self._exec

    def load_s(self, hint: Hint, tier: str = "disk") -> float:
        """Return what a load from *tier* should take."""
        known = self._load.get((hint, tier))
        if known is not None:
            return known.value
        size, pace = self._size.get(hint), self._s_per_byte.get(tier)
        return size * pace.value if size and pace is not None else self.mean_load.value

    def learnt_load_s(self, hint: Hint, tier: str = "disk") -> float | None:
        """Return the same if a load of *hint* itself has been seen, else None."""
        known = self._load.get((hint, tier))
        return None if known is None else known.value

    def size_bytes(self, hint: Hint) -> int | None:
        """Return the size of a model; None: nobody has told."""
        return self._size.get(hint)

    def speed(self, gpu: str) -> float:
        """Return how much longer than on a card of speed 1 an execution takes on a card of this model."""
        known = self._speed.get(gpu)
        return 1.0 if known is None else known.value


def _entry(table: OrderedDict[Any, Mean], key: Any) -> Mean:
    mean = table.setdefault(key, Mean())
    _trim(table)
    table.move_to_end(key)
    return mean


def _trim(table: OrderedDict[Any, Any]) -> None:
    while len(table) > HINTS_MAX:
        table.popitem(last=False)
