"""
How fast each card is against the others, learnt from whatever it executes.

A card's figure is the mean of log(seconds / what this hint usually takes) over its executions, less the mean of that
over all cards: a card of the fleet's mean speed has factor 1, whatever the hints cost, so that costs and speeds cannot
drift against each other. What a hint *usually* takes has a memory far longer than a card's, so that a card that is
throttled is told apart from models that have become dear, also while nobody else runs these models.

Cards that are equal look unequal by chance. So a difference is shrunk by how sure it is (the non-negative garrote,
Breiman 1995): d becomes d * max(0, 1 - (Z * standard error / d)^2), nothing within Z standard errors and nearly all
of it far beyond. A card that has shown little is taken for the mean of the cards of its model.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import exp, log
from typing import Final, Self, TypeVar

from falctl.core.checks import amount, logarithm, part, rows, text, whole
from falctl.core.types import Hint

WEIGHT: Final = 0.05
"""Weight of a card's newest execution: it is known as throttled after about twenty."""
USUAL_WEIGHT: Final = 0.01
"""The same for what a hint usually takes."""
USUAL_LEAST: Final = 8
"""Executions of a hint before it says something about cards."""
Z: Final = 3.0
"""Standard errors that count as chance. GenTD26: executions of one model vary by 15 %, and depend on the one before."""
NEW: Final = 3
"""What is assumed of a new card weighs as much as so many executions."""
_NEW_VARIANCE: Final = 0.0625
_CLIP: Final = log(4.0)
"""An execution counts as this far off at most, so that one stall is seen as one."""
_LEAST_S: Final = 1e-6
K = TypeVar("K")
V = TypeVar("V")
CARDS_MAX: Final = 256
HINTS_MAX: Final = 4096


@dataclass(slots=True)
class _Card:
    """Mean and variance of the log ratios of one card."""

    mean: float
    variance: float = _NEW_VARIANCE
    n: int = 0

    def add(self, x: float) -> None:
        x = _clipped(x, self.mean)
        self.n += 1
        weight = max(WEIGHT, 1 / (self.n + NEW))
        self.variance += weight * ((x - self.mean) ** 2 - self.variance)
        self.mean += weight * (x - self.mean)

    @property
    def error2(self) -> float:
        """Return the square of the standard error of the mean."""
        return self.variance * max(WEIGHT / 2, 1 / (self.n + NEW))


@dataclass(slots=True)
class _Usual:
    """What a hint usually takes on a card of factor 1: the mean of log seconds."""

    mean: float = 0.0
    n: int = 0

    def add(self, x: float) -> None:
        self.n += 1
        x = _clipped(x, self.mean) if self.n > 2 else x
        self.mean += max(USUAL_WEIGHT, 1 / self.n) * (x - self.mean)


@dataclass(slots=True)
class Speeds:
    """A card's name is its model's, ``#``, and its runner's number; see `falctl.core.fleet.Runner.card`."""

    _cards: OrderedDict[str, _Card] = field(default_factory=OrderedDict)
    _usual: OrderedDict[Hint, _Usual] = field(default_factory=OrderedDict)
    _factors: dict[str, float] = field(default_factory=dict)
    """What follows from the rest, by card and by model; of a large fleet, as it was a few executions ago."""
    _since: int = 0
    """Executions since they were made."""

    def learn(self, card: str, hint: Hint, exec_s: float) -> None:
        """Take in an execution."""
        x = log(max(exec_s, _LEAST_S))
        usual = self._usual.setdefault(hint, _Usual())
        if usual.n >= USUAL_LEAST:
            known = self._cards.get(card) or self._cards.setdefault(card, _Card(self._siblings(card)))
            known.add(x - usual.mean)
            _keep(self._cards, card, CARDS_MAX)
            self._since += 1
            if self._since > len(self._cards) // 4:
                self._weigh()
        usual.add(x - log(self.factor(card)))
        _keep(self._usual, hint, HINTS_MAX)

    def factor(self, card: str) -> float:
        """Return how much longer than on the fleet's mean card an execution takes; also for the name of a model."""
        known = self._factors.get(card)
        return known if known is not None else self._factors.get(_model(card), 1.0)

    def dump(self) -> dict[str, list[list[str | float | int]]]:
        """Return all of it, as JSON can hold it."""
        return {
            "cards": [[name, c.mean, c.variance, c.n] for name, c in self._cards.items()],
            "usual": [[hint, usual.mean, usual.n] for hint, usual in self._usual.items()],
        }

    @classmethod
    def restored(cls, table: object) -> Self:
        """Return what was dumped. Raises ValueError: it cannot have been."""
        new = cls()
        for name, mean, variance, n in rows(part(table, "cards"), text, logarithm, amount, whole):
            new._cards[name] = _Card(mean, variance, n)
            _keep(new._cards, name, CARDS_MAX)
        for hint, mean, n in rows(part(table, "usual"), text, logarithm, whole):
            new._usual[Hint(hint)] = _Usual(mean, n)
            _keep(new._usual, Hint(hint), HINTS_MAX)
        new._weigh()
        return new

    def _weigh(self) -> None:
        self._since = 0
        middle = sum(card.mean for card in self._cards.values()) / max(len(self._cards), 1)
        logs = {name: _shrunk(card.mean - middle, card.error2) for name, card in self._cards.items()}
        models: dict[str, list[float]] = {}
        for name, value in logs.items():
            models.setdefault(_model(name), []).append(value)
        means = {model: sum(values) / len(values) for model, values in models.items()}
        self._factors = {name: exp(value) for name, value in (means | logs).items()}

    def _siblings(self, card: str) -> float:
        """Return the mean of the cards of the same model; of all, if it is the first of its model."""
        same = [c.mean for name, c in self._cards.items() if _model(name) == _model(card)]
        found = same or [c.mean for c in self._cards.values()]
        return sum(found) / len(found) if found else 0.0


def _shrunk(d: float, error2: float) -> float:
    return d * max(0.0, 1 - Z * Z * error2 / (d * d)) if d else 0.0


def _clipped(x: float, mean: float) -> float:
    return min(max(x, mean - _CLIP), mean + _CLIP)


def _model(card: str) -> str:
    return card.rpartition("#")[0]


def _keep(table: OrderedDict[K, V], key: K, most: int) -> None:
    """Keep the *most* entries that were used last, *key* being the last of them."""
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)
