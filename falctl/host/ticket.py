"""A request that holds a slot, and the slots. Owned by the event loop; an app thread only marks its own ticket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Literal

from falctl.clock import monotonic_s
from falctl.core.lifetimes import Lifetime
from falctl.core.residency import Verdict
from falctl.core.types import Hint, RequestId
from falctl.host.hint_source import Asked
from falctl.host.prints.transcript import Transcript

Cache = Literal["hit", "join", "ram", "disk", "none"]

_COSTLIEST_FIRST: Final[tuple[Verdict, ...]] = ("disk", "ram", "join", "hit")


@dataclass(eq=False, slots=True)
class Ticket:
    """One request, from the moment it got its slot."""

    request: RequestId
    hint: Hint | None
    warm: bool
    """Its hint was published when it started."""
    task: asyncio.Task[None] = field(repr=False)
    lifetime: Lifetime | None = None
    """Of the files that are stored while it is served; None: it does not say."""
    keep_alive_s: float | None = None
    """How long the models that it uses may idle, less than 0: for ever; None: it does not say."""
    transcript: Transcript = field(init=False, repr=False)
    """What is printed for it."""
    path: str = ""
    """Of the app's endpoint."""
    websocket: bool = False
    """It may idle: how long it lasts says nothing of what it costs, and is no sign of a hang."""
    busy_since: float | None = None
    """Since when a function runs for this websocket on an app thread; None: none does."""
    over: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set when it has given its slot back."""
    started_at: float = field(default_factory=monotonic_s)
    progress_at: float = 0.0
    step: int = 0
    steps: int = 0
    told_at: float = 0.0
    """When its steps were last told on the event stream."""
    previews: bool = False
    """Somebody wants pictures of how far it is."""
    preview_at: float = 0.0
    """When the last one was made."""
    leases: dict[str, Verdict] = field(default_factory=dict)
    load_s: float = 0.0
    in_endpoint_thread: bool = False
    """A sync endpoint runs: it cannot be stopped, only told."""
    asked: Asked | None = None
    """The hints as they were after the last line of a sync endpoint, until they are taken."""
    cancelled: bool = False
    """Somebody asked for it to be stopped; the app learns it from ``progress``."""
    gone: bool = False
    """Nobody reads the answer any more."""
    ending: bool = False
    failed: bool = False
    """Its answer is an error: how long that took says nothing of the model."""
    broke_card: bool = False
    """It met a CUDA error that no later call of this process survives."""
    ran_out: bool = False
    """Memory did not suffice for it."""
    least_bytes: int = 0
    """What its model takes at least, for which there was no room; 0: it did not end so."""
    ends_runner: bool = False
    """By fal's rules its answer is the last of this process, or its app cannot free memory: another takes its place."""
    overdue: bool = False
    """It has run for longer than its app allows."""
    stops: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when nothing more should be computed for it, for threads that wait."""
    kept: dict[object, tuple[object, Callable[[], None]]] = field(default_factory=dict, repr=False)
    """What it holds until its end, and how to give it back, on an app thread."""

    def __post_init__(self) -> None:
        self.transcript = Transcript(self.request)

    def cancel(self) -> None:
        """Stop the request where that is possible; a sync endpoint only learns of it."""
        self.cancelled = True
        self._stop()

    def leave(self) -> None:
        """Note that the client is gone; a sync endpoint goes on to its end."""
        self.gone = True
        self._stop()

    def expire(self) -> bool:
        """Note that its time is over; return whether it could be stopped, as a sync endpoint cannot."""
        self.overdue = True
        return self._stop()

    def let_go(self) -> None:
        """Give back all that it holds, whatever that raises. Called on an app thread."""
        with ExitStack() as stack:
            while self.kept:
                _, (_, give_back) = self.kept.popitem()
                stack.callback(give_back)

    def _stop(self) -> bool:
        self.stops.set()
        stoppable = not (self.in_endpoint_thread or self.ending)
        if stoppable:
            self.task.cancel()
        return stoppable

    @property
    def stopping(self) -> bool:
        """Return whether nothing more should be computed for it."""
        return self.cancelled or self.gone or self.overdue

    def leased(self, name: str, verdict: Verdict, load_s: float) -> None:
        """Note that the app got a model. Called on the thread that serves this request."""
        self.leases[name] = verdict
        self.load_s += load_s
        self.progress_at = monotonic_s()

    def spent_s(self, *, knows_loads: bool) -> tuple[float | None, float | None]:
        """Return seconds of execution and of load as `wire.Released` has them; None where nothing is to be learnt."""
        if self.websocket or self.stopping or self.failed:
            return None, None
        load_s = self.load_s if self.leases or knows_loads else None
        return max(monotonic_s() - self.started_at - (load_s or 0.0), 0.0), load_s

    @property
    def waits(self) -> bool:
        """Return whether it is a websocket that computes nothing, as far as one can tell."""
        return self.websocket and self.busy_since is None and not self.steps

    def since(self, *, now: float) -> float:
        """Return since when it executes what it executes *now*; a websocket that waits has only begun to."""
        if not self.websocket:
            return self.started_at
        return now if self.busy_since is None else self.busy_since

    @property
    def cache(self) -> Verdict | None:
        """Return the costliest way in which it got a model; None without a lease."""
        for verdict in _COSTLIEST_FIRST:
            if verdict in self.leases.values():
                return verdict
        return None


CURRENT: ContextVar[Ticket | None] = ContextVar("falctl_ticket", default=None)
"""The request that the running code serves; an app thread has the context of the request that called it."""


def current_lifetime() -> Lifetime | None:
    """Return what the request that the running code serves wants for its files; None: nothing, or there is none."""
    ticket = CURRENT.get()
    return None if ticket is None else ticket.lifetime


class Slots:
    """At most *count* requests at a time; no new one while draining."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.draining = False
        self.served = 0
        self.idle_at = monotonic_s()
        """Since when no request holds a slot, where none does."""
        self.sole: Ticket | None = None
        """Who holds the only slot; None: nobody does, or there are more. Other threads may read it."""
        self._held: dict[Ticket, None] = {}
        self.leaving = asyncio.Event()
        """Set when this runner is to go: websockets, which have no end of their own, are closed then."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def held(self) -> tuple[Ticket, ...]:
        """Return the requests that hold a slot, oldest first."""
        return tuple(self._held)

    @property
    def free(self) -> bool:
        """Return whether a request may start now."""
        return not self.draining and len(self._held) < self.count

    def drain(self) -> None:
        """Let no request in any more, and have websockets end."""
        self.draining = True
        self.leaving.set()

    def take(self, ticket: Ticket) -> None:
        """Give *ticket* a slot; call only when one is free."""
        assert self.free, "no slot is free"
        self._held[ticket] = None
        self.sole = ticket if self.count == 1 else None
        self._idle.clear()

    def release(self, ticket: Ticket) -> None:
        """Take the slot back."""
        del self._held[ticket]
        self.sole = None
        ticket.over.set()
        self.served += 1
        if not self._held:
            self.idle_at = monotonic_s()
            self._idle.set()

    def find(self, request: str) -> Ticket | None:
        """Return the ticket of *request*; None when it holds no slot."""
        return next((t for t in self._held if t.request == request), None)

    async def wait_idle(self) -> None:
        """Return when no request holds a slot."""
        await self._idle.wait()
