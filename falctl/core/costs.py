"""
What a load and an execution cost, learnt from those that have happened.

An execution is the product of two figures that are learnt apart: seconds of a hint on the fleet's mean card, and how
much longer than that one the card takes (`falctl.core.speeds`). So a hint seen on one card says what it will cost on
another, and a slow or throttled card is known from whatever it does. One observation moves an estimate by its weight
at most, and one that is off by more than `CLIP` counts as off by `CLIP`, so that a single stall does not spoil it; the
third in a row is no stray.

Priors for what has not happened yet: an execution takes the fleet's mean; a load takes its bytes over the measured
bandwidth of its source if the size is declared; else, from disk, the fleet's mean load from there, and from a nearer
source the share of that which such loads have been seen to take.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

from falctl.core.checks import amount, part, rows, text, whole
from falctl.core.sources import SHARES, Source
from falctl.core.speeds import Speeds
from falctl.core.types import Hint

WEIGHT: Final = 0.1
"""Weight of the newest observation of one hint once there are enough; before, each counts alike."""
FLEET_WEIGHT: Final = 0.01
"""The same for means over the whole fleet."""
CLIP: Final = 4.0
STRAYS: Final = 3
"""So many observations in a row that are off by more than `CLIP` to one side are how things are now."""
_FROM: Final = "load from "
HINTS_MAX: Final = 4096
"""Hints whose costs are remembered; the one not seen for longest is forgotten first."""

EXEC_PRIOR_S: Final = 4.0
LOAD_PRIOR_S: Final = 8.0
SIZE_PRIOR_BYTES: Final = 7e9
"""Before anything has happened: SDXL at 30 steps on a desktop card, loaded from a local SSD."""


@dataclass(slots=True)
class Mean:
    """A robust running mean of numbers from 0 up. ``n`` is 0 before the first, which replaces any prior ``value``."""

    value: float = 0.0
    n: int = 0
    strays: int = 0
    """Observations in a row that were too large, or, negative, too small."""

    def set(self, value: float, n: int) -> None:
        """Take over what another learnt."""
        self.value, self.n = value, n

    def add(self, x: float, weight: float) -> None:
        """Take in *x*, clipped to `CLIP` times the mean so far either way."""
        self.n += 1
        if self.n == 1:
            self.value = x
            return
        if self.n > 2:  # the first two may both be odd; from then on a stray is seen as one
            x = self._believed(x)
        self.value += max(weight, 1.0 / self.n) * (x - self.value)

    def _believed(self, x: float) -> float:
        side = (x > self.value * CLIP) - (x < self.value / CLIP)
        self.strays = side + self.strays if side * self.strays >= 0 and side else side
        if abs(self.strays) >= STRAYS:
            return x
        return min(max(x, self.value / CLIP), self.value * CLIP)


Row: TypeAlias = list[str | float | int]
"""A key or several, then what is known of it."""


@dataclass(slots=True)
class Costs:
    """All that is learnt. Keys are a hint, a source, or a card's name; sizes in bytes, costs in seconds."""

    _exec: OrderedDict[Hint, Mean] = field(default_factory=OrderedDict)
    _load: OrderedDict[tuple[Hint, str], Mean] = field(default_factory=OrderedDict)
    _size: OrderedDict[Hint, int] = field(default_factory=OrderedDict)
    _first: OrderedDict[Hint, float] = field(default_factory=OrderedDict)
    """First runs, load included, of hints that have not run warm yet."""
    _speeds: Speeds = field(default_factory=Speeds)
    _s_per_byte: dict[str, Mean] = field(default_factory=dict)
    observations: int = 0
    """How many have been made: whoever keeps a copy knows by it whether there is more."""
    mean_size: Mean = field(default_factory=lambda: Mean(SIZE_PRIOR_BYTES))
    mean_exec: Mean = field(default_factory=lambda: Mean(EXEC_PRIOR_S))
    mean_load: Mean = field(default_factory=lambda: Mean(LOAD_PRIOR_S))
    """Of all loads, from wherever."""
    _mean_from: dict[str, Mean] = field(default_factory=lambda: {"disk": Mean(LOAD_PRIOR_S)})
    """The same by source."""

    # --- keeping ---------------------------------------------------------------------------------

    def dump(self) -> dict[str, list[Row] | dict[str, list[Row]]]:
        """Return all but unsettled first runs, as JSON can hold it."""
        fleet = {"size": self.mean_size, "exec": self.mean_exec, "load": self.mean_load}
        fleet |= {f"{_FROM}{source}": mean for source, mean in self._mean_from.items()}
        return {
            "exec": [[hint, mean.value, mean.n] for hint, mean in self._exec.items()],
            "load": [[hint, source, mean.value, mean.n] for (hint, source), mean in self._load.items()],
            "size": [[hint, size] for hint, size in self._size.items()],
            "s_per_byte": [[source, mean.value, mean.n] for source, mean in self._s_per_byte.items()],
            "fleet": [[name, mean.value, mean.n] for name, mean in fleet.items()],
            "speeds": self._speeds.dump(),
        }

    @classmethod
    def restored(cls, table: object) -> Self:
        """Return what was dumped. Raises ValueError: it cannot have been."""
        new = cls(_speeds=Speeds.restored(part(table, "speeds")))
        for hint, value, n in rows(part(table, "exec"), text, amount, whole):
            _entry(new._exec, Hint(hint)).set(value, n)
        for hint, source, value, n in rows(part(table, "load"), text, text, amount, whole):
            _entry(new._load, (Hint(hint), source)).set(value, n)
        for hint, size in rows(part(table, "size"), text, whole):
            new._size[Hint(hint)] = size
        _trim(new._size)
        for source, value, n in rows(part(table, "s_per_byte"), text, amount, whole):
            new._s_per_byte[source] = Mean(value, n)
        fleet = {"size": new.mean_size, "exec": new.mean_exec, "load": new.mean_load}
        known = {name: (value, n) for name, value, n in rows(part(table, "fleet"), text, amount, whole)}
        for name, mean in fleet.items():
            mean.set(*known.get(name, (mean.value, mean.n)))
        # Files of releases that told no sources apart know loads from disk alone.
        new._mean_from["disk"].set(new.mean_load.value, new.mean_load.n)
        for source in SHARES:
            if (told := known.get(f"{_FROM}{source}")) is not None:
                new._mean_from[source] = Mean(*told)
        if not new.mean_size.value:
            msg = "models of no size"
            raise ValueError(msg)
        return new

    # --- learning --------------------------------------------------------------------------------

    def executed(self, hint: Hint, card: str, exec_s: float) -> None:
        """Learn from an execution that found its model resident."""
        self.observations += 1
        self.mean_exec.add(exec_s, FLEET_WEIGHT)
        self._speeds.learn(card, hint, exec_s)
        _entry(self._exec, hint).add(exec_s / self.speed(card), WEIGHT)

    def loaded(self, hint: Hint, source: str, load_s: float) -> None:
        """Learn from a load that has ended well."""
        self.observations += 1
        self.mean_load.add(load_s, FLEET_WEIGHT)
        self._mean_from.setdefault(source, Mean()).add(load_s, FLEET_WEIGHT)
        _entry(self._load, (hint, source)).add(load_s, WEIGHT)
        if size := self._size.get(hint):
            self._s_per_byte.setdefault(source, Mean()).add(load_s / size, 0.05)

    def remember_first(self, hint: Hint, both_s: float) -> None:
        """Note a cold run of unknown parts, until a warm one tells them apart; see `settle`."""
        self._first.setdefault(hint, both_s)
        _trim(self._first)

    def settle(self, hint: Hint, card: str) -> None:
        """Learn the load of the first run, now that a warm run is known."""
        if (both_s := self._first.pop(hint, None)) is not None:
            self.loaded(hint, "disk", max(both_s - self.exec_s(hint, card), 0.0))

    def declare(self, hint: Hint, size_bytes: int) -> None:
        """Note how large a model is."""
        self._size[hint] = size_bytes
        self.mean_size.add(size_bytes, FLEET_WEIGHT)
        _trim(self._size)

    # --- asking ----------------------------------------------------------------------------------

    def exec_s(self, hint: Hint, card: str = "") -> float:
        """Return what an execution should take on *card*; without a name, on the fleet's mean card."""
        known = self._exec.get(hint)
        return (known.value if known is not None else self.mean_exec.value) * self.speed(card)

    def knows(self, hint: Hint) -> bool:
        """Return whether an execution of *hint* has been seen."""
        return hint in self._exec

    def load_s(self, hint: Hint, source: Source = "disk") -> float:
        """Return what a load from *source* should take."""
        known = self._load.get((hint, source))
        if known is not None:
            return known.value
        size, pace = self._size.get(hint), self._s_per_byte.get(source)
        if size and pace is not None:
            return size * pace.value
        disk = self._mean_from["disk"].value
        if source == "disk":
            return disk
        mean = self._mean_from.get(source)
        share = SHARES[source] if mean is None or not disk else min(mean.value / disk, 1.0)
        return share * self.load_s(hint)

    def learnt_load_s(self, hint: Hint, source: Source = "disk") -> float | None:
        """Return the same if a load of *hint* itself has been seen, else None."""
        known = self._load.get((hint, source))
        return None if known is None else known.value

    def size_bytes(self, hint: Hint) -> int | None:
        """Return the size of a model; None: nobody has told."""
        return self._size.get(hint)

    def speed(self, card: str) -> float:
        """Return how much longer than on the fleet's mean card an execution takes on *card*."""
        return self._speeds.factor(card)


def _entry(table: OrderedDict[Any, Mean], key: Any) -> Mean:
    mean = table.setdefault(key, Mean())
    _trim(table)
    table.move_to_end(key)
    return mean


def _trim(table: OrderedDict[Any, Any]) -> None:
    while len(table) > HINTS_MAX:
        table.popitem(last=False)
