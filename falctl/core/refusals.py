"""
Which runners have said that they have no room for a model, and for how long that is believed.

    refused ── its time is over ──► tried again ── refused once more ──► believed for twice as long
       ├── refused meanwhile, as a job's attempt may be ──► believed for as long again
       └── the runner holds the model, what is pinned there changes, it is another incarnation ──► forgotten

A runner's 507 is about its card, what is pinned there and what other programs have of it at that instant; the router
sees little of that, so that it asks again, now and then. Of two runners whose cards are of one model the other is not
even asked if the first has said that the model needs more than such a card has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from falctl.core.events import Failure
from falctl.core.fleet import Runner
from falctl.core.types import Hint, RunnerId

BELIEVED_S: Final = 30.0
BELIEVED_MAX_S: Final = 120.0
"""To ask takes a slot for a moment and evicts nothing; a program that gives a card back is noticed within this."""
MODELS_MAX: Final = 1024
"""Of more, the one that was refused longest ago is tried again."""


@dataclass(slots=True)
class Refusal:
    """What a runner has said; ``until``: when it is asked again."""

    at: float
    until: float
    gpu: str
    """The model of its card."""
    least_bytes: int
    """What the model takes at the very least."""
    failure: Failure
    believed: bool = True


@dataclass(slots=True)
class Refusals:
    """Owner of what runners have refused."""

    _models: OrderedDict[Hint, dict[RunnerId, Refusal]] = field(default_factory=OrderedDict)
    _next_at: float = float("inf")
    """When the first of those that are believed is not any more."""

    def note(self, hint: Hint, runner: Runner, least_bytes: int, failure: Failure, *, now: float) -> None:
        """*runner* has no room for *hint*."""
        known = self._models.setdefault(hint, {})
        self._models.move_to_end(hint)
        before = known.get(runner.runner)
        believed_s = BELIEVED_S
        if before is not None:
            longer = 1 if before.believed else 2
            believed_s = min(longer * (before.until - before.at), BELIEVED_MAX_S)
        known[runner.runner] = Refusal(now, now + believed_s, runner.caps.gpu, least_bytes, failure)
        self._next_at = min(self._next_at, now + believed_s)
        if len(self._models) > MODELS_MAX:
            self._models.popitem(last=False)

    def of(self, hint: Hint, runner: Runner) -> Refusal | None:
        """Return why *hint* is not to be sent to *runner*: its own word, or that of a like one; None: nothing speaks against it."""
        known = self._models.get(hint) if self._models else None
        if not known or hint in (runner.hints or ()):
            return None
        own = known.get(runner.runner)
        if own is not None and own.believed:
            return own
        limit = runner.caps.vram_bytes
        if limit is None or own is not None:  # its own time is over
            return None
        words = (
            r for r in known.values() if r.believed and r.gpu == runner.caps.gpu and r.least_bytes > limit
        )
        return next(words, None)

    def everywhere(self, hint: Hint, runners: Iterable[Runner]) -> Refusal | None:
        """Return the latest refusal of *hint* if none of *runners* is worth asking; None: one is."""
        latest: Refusal | None = None
        if hint not in self._models:
            return None
        for runner in runners:
            if (refusal := self.of(hint, runner)) is None:
                return None
            latest = refusal if latest is None or refusal.at > latest.at else latest
        return latest

    def expire(self, *, now: float) -> bool:
        """Believe what was said too long ago no more; return whether there was such."""
        if now < self._next_at:
            return False
        believed = [r for known in self._models.values() for r in known.values() if r.believed]
        for refusal in believed:
            refusal.believed = now < refusal.until
        self._next_at = min((r.until for r in believed if r.believed), default=float("inf"))
        return not all(r.believed for r in believed)

    def found(self, hints: Collection[Hint], runner: RunnerId) -> None:
        """*runner* holds *hints*: it has room for them."""
        if self._models:
            self._forget([hint for hint in hints if hint in self._models], runner)

    def forget(self, runner: RunnerId) -> None:
        """What *runner* has room for is not what it was."""
        self._forget(list(self._models), runner)

    def _forget(self, hints: Iterable[Hint], runner: RunnerId) -> None:
        for hint in hints:
            known = self._models[hint]
            known.pop(runner, None)
            if not known:
                del self._models[hint]
