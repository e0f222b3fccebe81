"""What the scheduler knows about the runners: slots, hints, and who was served last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from falctl.core.types import Epoch, Hint, RequestId, RunnerId

LAST_SERVED_MAX: Final = 4096
"""Hints remembered for apps without provide_hints; the least recently served is forgotten first."""


@dataclass(slots=True)
class Runner:
    """
    One runner that is up. Its slots are the host's truth; ``in_use`` is what we dispatched or were told of.

    ``blocked``: the host bounced a request although a slot looked free to us, so nothing is sent until it tells
    of its slots again.
    """

    runner: RunnerId
    epoch: Epoch
    slots: int
    hints: frozenset[Hint] | None
    in_use: dict[RequestId, Hint | None] = field(default_factory=dict)
    accepting: bool = True
    blocked: bool = False
    dispatched_order: int = -1
    """Order number of the last dispatch to it, -1 for none: the least is the one whose turn it is."""

    @property
    def free_slots(self) -> int:
        """Return how many requests it would take now."""
        return max(self.slots - len(self.in_use), 0) if self.accepting and not self.blocked else 0


@dataclass(slots=True)
class Fleet:
    """The runners that are up, and those that will be again."""

    runners: dict[RunnerId, Runner] = field(default_factory=dict)
    returning: set[RunnerId] = field(default_factory=set)
    _last_served: OrderedDict[Hint, RunnerId] = field(default_factory=OrderedDict)

    def free(self) -> list[Runner]:
        """Return the runners with a free slot, the one whose turn it is first (round robin)."""
        return sorted(
            (r for r in self.runners.values() if r.free_slots), key=lambda r: (r.dispatched_order, r.runner)
        )

    def warm(self, hint: Hint, runner: Runner) -> bool:
        """Return whether *runner* is warm for *hint*: it says so, or, if it gives no hints, served it last."""
        if runner.hints is None:
            return self._last_served.get(hint) == runner.runner
        return hint in runner.hints

    def warming(self, hint: Hint) -> Iterator[Runner]:
        """Iterate over the runners that are warm for *hint* or execute a request for it now."""
        return (r for r in self.runners.values() if self.warm(hint, r) or hint in r.in_use.values())

    def serve(self, hint: Hint, runner: RunnerId) -> None:
        """Remember that *runner* was the last to be sent a request for *hint*."""
        self._last_served[hint] = runner
        self._last_served.move_to_end(hint)
        if len(self._last_served) > LAST_SERVED_MAX:
            self._last_served.popitem(last=False)

    def forget(self, runner: RunnerId) -> None:
        """Drop what *runner* served: its process is gone, and what it was warm for with it."""
        for hint in [h for h, r in self._last_served.items() if r == runner]:
            del self._last_served[hint]
