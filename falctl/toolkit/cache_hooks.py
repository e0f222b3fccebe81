"""What a model cache asks of whoever runs it: the host, or nobody, for whom every answer here is a default."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from falctl.core.activations import Drawing
from falctl.core.fit import How
from falctl.core.residency import Room, Verdict
from falctl.core.skeletons import SKELETONS_MAX

Kept: TypeAlias = MutableMapping[object, tuple[Any, Callable[[], None]]]
"""What a request holds until its end, and how to give it back, by whose it is."""


def _nothing_changed() -> None: ...


def _nobody_asked(name: str, verdict: Verdict, load_s: float) -> None: ...


def _no_request() -> None:
    return None


def _task_or_thread() -> Hashable:
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()


async def _aside(call: Callable[[], None]) -> None:
    """Run *call* on another thread; cancelled, wait for its end first."""
    thread = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


@dataclass(frozen=True, slots=True)
class CacheHooks:
    """What a cache reports, on the thread that caused it and with no lock held, and what it asks about a request."""

    changed: Callable[[], None] = _nothing_changed
    """A load began or ended, or models left."""
    leased: Callable[[str, Verdict, float], None] = _nobody_asked
    """A lease got its model: the name, how, and the seconds it took."""
    idle: Callable[[], None] = _nothing_changed
    """A lease ended: `ModelCache.due_at` may have changed."""
    kept: Callable[[], Kept | None] = _no_request
    """Return what the request that this code serves holds until its end; None: it serves none."""
    holder: Callable[[], Hashable] = _task_or_thread
    """
    Return for whom this code leases models: equal for what draws one thing at a time.

    None: for nobody whose end can be waited for, as an app's ``setup``.
    """
    cancelled: Callable[[], threading.Event] = threading.Event
    """Return what is set when the request that this code serves is to stop."""
    run: Callable[[Callable[[], None]], Awaitable[None]] = _aside
    """Call on a thread that may load models, while the event loop goes on; over when the call is, also if cancelled."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """How a model is to run, and what it needs on the device for that: weights and drawing together."""

    how: How
    need_bytes: int
    detail: Hashable = None
    """What else tells this way from another, so that a model that runs otherwise is placed anew."""
    plan: Any = field(default=None, compare=False)
    """What whoever admitted it has to know of it, for `CachePolicy.arrange`."""

    def same_way(self, other: Admitted | None) -> bool:
        """Return whether a model that is placed as *other* can stay as it is."""
        return other is not None and (self.how, self.detail) == (other.how, other.detail)


WHOLE = Admitted("whole", 0)
"""Where bytes are not counted."""


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """What is known of a call that ran out of the device's memory; nothing of it holds memory."""

    name: str
    drawing: Drawing | None
    attempt: int
    """Of this call, from 1."""
    detail: str
    """The error's text."""


def _for_ever(name: str) -> float | None:
    del name
    return None


def _nothing_reserved() -> int:
    return 0


def _nothing_to_arrange(name: str, drawing: Drawing | None, admitted: Admitted) -> None: ...


def _bare(name: str, drawing: Drawing | None, alone: Callable[[], bool]) -> AbstractContextManager[object]:
    del name, drawing, alone
    return nullcontext()


def _once_more(facts: OutOfMemory) -> Literal["retry", "raise"]:
    return "retry" if facts.attempt == 1 else "raise"


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What is up to the configuration, and to those who know the models better than the cache."""

    models_max: int = 0
    """Models on the device at a time; 0: as many as have room."""
    skeletons_max: int = SKELETONS_MAX
    """Models of which only the modules are held, at a time."""
    keep_alive_s: Callable[[str], float | None] = _for_ever
    """
    Return how long a model may idle in each tier, None or less than 0: for ever; 0: it leaves when its lease ends.

    Asked at the end of each lease, on its thread, so that the answer may be that of a request.
    """
    reserve_bytes: Callable[[], int] = _nothing_reserved
    """Return how much of the device is to be left free."""
    admit: Callable[[str, Drawing | None, Room], Admitted] | None = None
    """
    Return how a model can run in the room that there is; None: whole or not at all. Changes nothing.

    Raises a `ModelTooLargeError`: in no way.
    """
    arrange: Callable[[str, Drawing | None, Admitted], None] = _nothing_to_arrange
    """Have a model that stands run as it was admitted from now on; called before it is placed, and at each lease."""
    around: Callable[[str, Drawing | None, Callable[[], bool]], AbstractContextManager[object]] = _bare
    """
    Return a block for each call of `ModelCache.run`, entered when its model is leased: to measure it.

    The last argument tells, until the block ends, whether nobody else has held a model since it began.
    """
    recover: Callable[[OutOfMemory], Literal["retry", "raise"]] = _once_more
    """
    Say what becomes of a call that ran out of memory, after every idle model has left the device.

    Called with no lease and no exception held; may collect, learn a peak, or change how the model runs. May raise the
    error itself.
    """


NO_HOOKS = CacheHooks()
NO_POLICY = CachePolicy()
