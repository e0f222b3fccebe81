"""What can happen to the scheduler, and what it can ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from falctl.core.sources import Source, Stock, Tier
from falctl.core.types import NO_CAPS, Caps, Epoch, Hint, Priority, RequestId, RunnerId, Wanted


@dataclass(frozen=True, slots=True)
class Failure:
    """What a runner's app answers, or would answer, to a request whose model cannot be loaded there."""

    status: int
    error_type: str
    detail: str

    @property
    def lasts(self) -> bool:
        """Return whether any other runner would say the same, at any time: it is the request that is wrong, or the model."""
        return 400 <= self.status < 500 and self.status not in _PASSING


_PASSING: Final = frozenset({408, 409, 425, 429, 499})
"""Of the 4xx those that speak of a moment."""

# --- events: things that happened --------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """A client waits for an answer; its body has been read whole."""

    request: RequestId
    wanted: Wanted | None
    client: str
    """Who shares fairly with the others: an API key's name or an address; empty: nobody in particular."""
    priority: Priority = "normal"
    start_by: float | None = None
    """Refused if it has not started by this instant; None: it waits as long as it takes."""
    size_bytes: int | None = None
    """How large the wanted model is, if the request declares it."""
    bounded: bool = True
    """Refused if too many wait. False: it is a job of the durable queue, which has let it in and shows few of many."""
    again: bool = False
    """It was sent before, and what it was sent to failed: its turn had come, so it is not behind those who came since."""


@dataclass(frozen=True, slots=True)
class Behind:
    """So many more wait for a hint than have arrived: the durable queue shows few of many."""

    hint: Hint
    count: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The client is gone. A waiting request is dropped; one in flight keeps its slot until it is released."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Released:
    """A request has given its slot back: the host said so, or its answer has ended. Telling twice is fine."""

    request: RequestId
    runner: RunnerId
    epoch: Epoch
    exec_s: float | None = None
    """How long it executed, without its load; None: the host does not know, it failed or was cancelled."""
    load_s: float | None = None
    """How long it loaded; 0: its model was resident; None: the host cannot tell, and ``exec_s`` includes it."""
    tier: Tier | None = "disk"
    """Where it loaded from; None: it waited for what another request loaded, which tells nothing of a load."""
    least_bytes: int = 0
    """Its model had no room there: what that takes at the very least, whatever is drawn; 0: that was not so."""


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load that we asked for is over. One that was not needed took 0 seconds."""

    runner: RunnerId
    epoch: Epoch
    hint: Hint
    ok: bool
    load_s: float
    tier: Tier = "disk"
    hints: frozenset[Hint] | None = None
    """What the runner is warm for now: after a load that failed, its victims may still be there. None: nobody has told."""
    error: str = ""
    """Why it failed, in words."""
    failure: Failure | None = None
    """What a request for that model would be answered; None: nobody has said."""
    least_bytes: int = 0
    """As in `Released`."""


@dataclass(frozen=True, slots=True)
class Bounced:
    """A runner did not let a dispatched request in: its slots were taken, it drains, or it cannot be reached."""

    request: RequestId
    runner: RunnerId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """A runner takes work. ``executing`` are the requests in its slots, also ones a dead router sent."""

    runner: RunnerId
    epoch: Epoch
    slots: int
    executing: tuple[RequestId, ...]
    hints: frozenset[Hint] | None
    caps: Caps = NO_CAPS
    loading: tuple[Hint, ...] = ()
    """Load jobs under way, also ones that a dead router asked for."""
    pinned: frozenset[Hint] = frozenset()
    """As in `PinsChanged`."""
    stock: Stock | None = None
    """What else is known of its models; None: nobody has told."""


@dataclass(frozen=True, slots=True)
class RunnerDown:
    """A runner takes no work any more. ``returns``: a new incarnation is on its way, so it is worth waiting."""

    runner: RunnerId
    returns: bool


@dataclass(frozen=True, slots=True)
class HintsChanged:
    """What a runner is warm for has changed. None: its app gives no hints; empty: it is warm for nothing yet."""

    runner: RunnerId
    epoch: Epoch
    hints: frozenset[Hint] | None
    stock: Stock | None = None
    """What else is known of its models; None: what was known before."""


@dataclass(frozen=True, slots=True)
class PinsChanged:
    """These models are pinned on a runner now: they leave it for nothing."""

    runner: RunnerId
    epoch: Epoch
    pinned: frozenset[Hint]


@dataclass(frozen=True, slots=True)
class Wished:
    """Somebody wants a model loaded, no request does. `TellWish` follows."""

    number: int
    """By which it is told of; the caller's, and no other's."""
    hint: Hint
    runner: RunnerId | None = None
    """Where; None: where it costs least."""
    first: bool = True
    """Before requests that wait, and with room made for it; False: when nobody waits, into free room."""


@dataclass(frozen=True, slots=True)
class WishDropped:
    """Nobody wants to hear of a wish any more."""

    number: int


@dataclass(frozen=True, slots=True)
class RunnerDrains:
    """A runner finishes what it has and takes nothing more."""

    runner: RunnerId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Drains:
    """The whole fleet is about to stop."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened, but time did."""


Event: TypeAlias = (
    Arrived
    | Behind
    | Cancelled
    | Released
    | LoadEnded
    | Bounced
    | RunnerUp
    | RunnerDown
    | HintsChanged
    | PinsChanged
    | Wished
    | WishDropped
    | RunnerDrains
    | Drains
    | Tick
)

# --- actions: things the driver must now do ----------------------------------

RefuseCode = Literal[
    "queue_full",
    "client_queue_full",
    "model_too_large",
    "pins_leave_no_room",
    "load_failed",
    "no_runner",
    "draining",
    "bounced_too_often",
    "start_timeout",
    "cancelled",
]


LoadShare = Literal["ram", "disk", "join"]
"""The first request after a load job had it made, from there; the others that waited for it joined it."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send this request to this incarnation of this runner now; its slot is already taken."""

    request: RequestId
    runner: RunnerId
    epoch: Epoch
    warm: bool
    """Whether the runner is warm for the wanted hint, as far as we know; False without a hint."""
    waited_s: float
    reason: str
    cache: LoadShare | None = None
    """How it shared in a load job that ended while it waited; None: in none, and the host knows where its model was."""
    load_s: float = 0.0
    """Seconds of its wait in which that load ran."""


@dataclass(frozen=True, slots=True)
class Load:
    """Let this incarnation of this runner evict these models, then load that one; `LoadEnded` follows."""

    runner: RunnerId
    epoch: Epoch
    hint: Hint
    evict: tuple[Hint, ...]
    reason: str
    source: Source = "disk"
    """Where it should come from, as far as we know."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer this request with an error."""

    request: RequestId
    code: RefuseCode
    retry_after_s: float | None = None
    """When a place in the queue should be free again; None: that is not what it lacked, or nobody knows."""
    waiting: int = 0
    """How many wait, of those that the bound counts which refused it; 0: no bound did."""
    size_bytes: int = 0
    """How large the model is that fits no card; 0: that was not the reason."""
    pinned: tuple[Hint, ...] = ()
    """The models whose pins leave no room for it anywhere, if that was the reason."""
    failure: Failure | None = None
    """What the runner said that could not load its model, if that was the reason."""


WishNews = Literal[
    "begun",
    "joined",
    "there",
    "loaded",
    "failed",
    "lost",
    "no_runner",
    "takes_no_loads",
    "pins_leave_no_room",
    "too_large",
    "full",
]
"""
Of a wish: its load begins, or was under way; all others are its end. there: the model was; full: there is no free
room for it, and it may not make any.
"""


@dataclass(frozen=True, slots=True)
class TellWish:
    """Tell whoever wished for a model what became of that."""

    number: int
    news: WishNews
    runner: RunnerId | None = None
    evict: tuple[Hint, ...] = ()
    load_s: float = 0.0
    tier: str = ""
    """Where it was loaded from; empty: nobody has told."""
    error: str = ""


Action: TypeAlias = Dispatch | Load | Refuse | TellWish
