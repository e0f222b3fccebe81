r"""
Every message between our processes, and the header names that only they use.

Two channels. The **control channel** is a socketpair between the supervisor and each child: one JSON object a
line, ``{"kind": ..., ...}``; its end-of-file means that the other side is dead. The **event stream** is the
answer to ``GET /falctl/events`` on a host's Unix socket: the same framing, from the host to the router. Every
message about a runner bears its epoch; the receiver drops an older one.

The board is state, these are events: a message says that something happened; what is now true (hints, models)
stands on the board, and is written there before the message is sent.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, TypeAlias, get_args

EVENTS_PATH: Final = "/falctl/events"
CANCEL_PATH: Final = "/falctl/cancel/"
"""POST ``/falctl/cancel/<request id>`` on a host's socket: stop that request if it can be stopped."""

PREVIEW_PATH: Final = "/falctl/preview/"
"""POST ``/falctl/preview/<request id>`` on a host's socket: make previews of that request from now on."""

ACCEPTED: Final = 202
LOAD_PATH: Final = "/falctl/load"
"""POST ``{"hint": name, "evict": [names]}`` on a host's socket: load a model without a request for it."""

MODELS_PATH: Final = "/falctl/models"
"""
POST ``{"do": "load|unload|pin|unpin", "model": name, "tier": "ram|disk"}`` on a host's socket: what a person wants.

Answered when it is done: ``{"tier": where it is then, "changed": whether that is new}``, or an error as an app's requests have
them. tier: where an unload ends, "disk" is nowhere but there; of a load always "ram", as one onto the card is a load job.
"""

RESERVED_PREFIXES: Final = (
    "/falctl",
    "/health",
    "/files",
    "/run",
    "/queue",
    "/ws",
    "/fal",
    "/api/fal",
    "/v1",
    "/metrics",
)
"""Paths that the router answers itself or keeps for later; an app's endpoint may not begin with one."""

H_REQUEST_ID: Final = "x-fal-request-id"
H_HINT: Final = "x-fal-runner-hint"
H_HINTS: Final = "x-fal-runner-hints"
H_RUNNER: Final = "x-falctl-runner"
H_CACHE: Final = "x-falctl-cache"
H_ORIGIN: Final = "x-falctl-origin"
H_ERROR_TYPE: Final = "x-fal-error-type"

H_RAW: Final = "x-falctl-headers"
"""
Router to host: the client's headers whose bytes are not ASCII, as JSON ``[[name, value as latin-1], ...]`` in
ASCII, because the HTTP client between them re-encodes such bytes. The host puts them back.
"""

H_WANTED: Final = "x-falctl-hint"
"""Router to host: the hint that the router took from the body, as a JSON string in ASCII."""

H_PREVIEW: Final = "x-falctl-preview"
"""Client to router, and router to host: ``1``, make previews of this request."""

H_BOUNCED: Final = "x-falctl-bounced"
"""Host to router, on a 503: no slot was free or the host drains; the app was not entered, so send it elsewhere."""

H_TIMINGS: Final = "x-falctl-timings"
"""
Host to router: ``cache=hit|join|ram|disk|none;load_s=0.000000;exec_s=0.000000``, what is known when the headers
leave; the router turns it into the receipt and removes it.
"""

JOINED: Final = "join"

EXIT_RETIRED: Final = 71
"""A host's exit code: its app asked for another process, by an answer 503 of a fal.App for instance."""


# --- control channel: supervisor to child ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostSpec:
    """All that a host needs to know; the first message on its control channel."""

    runner: int
    epoch: int
    app: str
    """``module:Class`` or ``path.py::Class``."""
    cwd: str
    """Where `falctl up` was called: appended to the module search path."""
    socket: str
    """Path of the Unix socket to serve on; bears the epoch; under 100 bytes."""
    cards: list[str]
    """UUIDs in CUDA_VISIBLE_DEVICES, empty for a CPU runner."""
    card_names: list[str]
    driver: str
    """The NVIDIA driver's version, for error messages; empty for a CPU runner."""
    files_dir: str
    files_url: str
    """Prefix of the URL of a stored file, without the trailing slash: ``http://127.0.0.1:8808/files``."""
    data_dir: str
    """The folder that a fal.App knows as ``/data``; made when one runs."""
    config: dict[str, Any]
    """`falctl.config.Config` as JSON."""
    alias: str = ""
    """The name of its app among several; empty: there is one."""
    place: int = 0
    """Its number among the *peers* runners of its app, from 0."""
    peers: int = 1
    state_dir: str = ""  # where what was learnt is kept for the next start; empty: nowhere
    cpu_bytes: int | None = None  # what a CPU runner may fill with models and drawings; None: nobody has said
    given: list[str] = field(default_factory=list)
    """The keys of [runners] that somebody has written: they go before what the app declares."""


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """All that the router needs to know; the first message on its control channel."""

    epoch: int
    home: str
    url: str
    admin_token: str
    config: dict[str, Any]
    cwd: str = "."
    """Where `falctl up` was called: a policy of the user's is looked for there, too."""
    apps: dict[str, list[int]] = field(default_factory=dict)
    """The runners of each app by its alias; empty: all runners serve one app, which has no name."""
    files_url: str = ""
    """As in `HostSpec`: what clients get for the files that they have sent."""


@dataclass(frozen=True, slots=True)
class RunnerChanged:
    """To the router: a runner's life row on the board has changed; ``reason`` says why it is not ready."""

    runner: int
    epoch: int
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new request, finish what runs within ``within_s``, then report `Drained`."""

    within_s: float


@dataclass(frozen=True, slots=True)
class Ending:
    """To a host: `Stop` will follow when what runs has finished; the app may tell it to hurry."""


@dataclass(frozen=True, slots=True)
class Stop:
    """To a host: tear the app down and exit with 0. To the router: close and exit with 0."""


@dataclass(frozen=True, slots=True)
class Reload:
    """To the router: use this configuration from now on."""

    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LogLevel:
    """To a host: log from this level on, as ``log.level`` has it."""

    level: str


# --- control channel: child to supervisor ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """The child is at this stage of its start, in words for a person ("importing torch", "setup")."""

    text: str


@dataclass(frozen=True, slots=True)
class Declared:
    """A host has imported its app, which sets these limits itself; None: it does not. `setup()` comes next."""

    setup_timeout_s: float | None = None
    request_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The child serves. A host's ``slots`` is its app's max_multiplexing."""

    slots: int = 0
    grace_s: float | None = None
    """How long running requests of this app get to finish at the end; None: as the configuration says."""
    app_name: str = ""
    """What the app calls itself, if it is a fal.App."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The child cannot start: one line for a person, and the exit code that `falctl up` should end with."""

    message: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing runs any more."""


# --- event stream: host to router --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of every stream: the slots of this runner, the requests that hold one now, what it can do."""

    epoch: int
    slots: int
    executing: list[str]
    gpu: str = ""
    """The model of its cards: runners with the same are taken to be equally fast until they show that they are not."""
    loads: bool = False
    """The app uses one ModelCache: it takes loads as jobs of their own, and evicts what it is told to."""
    overlaps: bool = False
    """Such a load may run beside an execution."""
    models_max: int = 0
    """How many models it keeps; 0: it does not say."""
    vram_bytes: int = 0
    """What its device can hold of models; 0: its cache counts no bytes. What it knows of each stands on the board."""
    run_bytes: int = 0
    """The largest model that it could run at all, at whatever speed; 0: it does not say."""
    joint: str = ""
    """What its app writes between a base and what is laid upon it: ``+`` in ``base+lora``; empty: nothing is."""
    loading: list[str] = field(default_factory=list)
    """Load jobs under way."""
    app_name: str = ""
    """What the app calls itself, if it is a fal.App."""
    start_timeout_s: float | None = None
    """Its ``request_start_timeout``; None: a request waits as long as it takes."""
    request_timeout_s: float | None = None
    """How long this host lets a request run; None: as the configuration says."""
    retries: dict[str, int] = field(default_factory=dict)
    """Its ``retry_config``: further attempts by condition."""
    retry_skips: list[str] = field(default_factory=list)
    """Its ``skip_retry_conditions``."""


@dataclass(frozen=True, slots=True)
class Released:
    """A request has given its slot back; its row, with the hints after it, is on the board."""

    epoch: int
    request: str
    exec_s: float | None = None
    """How long it executed, without its load; None: it failed or was cancelled, which teaches nothing."""
    load_s: float | None = None
    """How long it waited for its model's load; None: the app tells nothing of loads, ``exec_s`` may include one."""
    tier: str = "disk"
    """Where that load took its bytes from: ``ram`` or ``disk``; `JOINED`: it waited for the load of another request."""
    least_bytes: int = 0
    """There was no room for its model: what that takes at the very least, whatever is drawn; 0: it was not that."""


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load job is over; what is resident now stands on the board."""

    epoch: int
    hint: str
    ok: bool
    load_s: float
    tier: str = "disk"
    """Where it took its bytes from: ``ram`` or ``disk``."""
    error: str = ""
    """Why it failed, in words."""
    status: int = 0
    """What a request for that model would be answered for it, with ``error`` as its detail; 0: the app says nothing to clients."""
    error_type: str = ""
    least_bytes: int = 0
    """As in `Released`."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """A request has done ``step`` of ``steps`` (0: nobody knows), as its row says, too. Not every step is told."""

    epoch: int
    request: str
    step: int
    steps: int
    preview: str = ""
    """A small JPEG in base64, of bounded size; empty: none that is new."""


@dataclass(frozen=True, slots=True)
class HintsChanged:
    """The hints on the board have changed."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Printed:
    """
    What the app has printed for a request since the last such message; all of it comes before its `Released`.

    After `Hello` what was told lately is told again: nobody knows what a router that died had taken in.
    """

    epoch: int
    request: str
    lines: list[tuple[float, str, str]]
    """Each with its time (seconds since 1970), its level and its text; no two of a request have the same time."""
    again: bool = False
    """Some of it may have been told before."""


@dataclass(frozen=True, slots=True)
class Draining:
    """The host takes no new request."""

    epoch: int


Message: TypeAlias = (
    HostSpec
    | RouterSpec
    | RunnerChanged
    | Drain
    | Ending
    | Stop
    | Reload
    | LogLevel
    | Stage
    | Declared
    | Ready
    | Failed
    | Drained
    | Hello
    | Released
    | LoadEnded
    | Stepped
    | HintsChanged
    | Printed
    | Draining
)

_KINDS: Final[dict[str, type[Any]]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Return *message* as one line, newline included."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """
    Return the message of one line.

    Raises:
        ValueError: not JSON, an unknown kind, or fields that are missing. Unknown fields are ignored, so that
            a newer peer is understood.
    """
    try:
        table = json.loads(line)
        kind = _KINDS[table["kind"]]
        message: Message = kind(**{f.name: table[f.name] for f in fields(kind) if f.name in table})
    except (KeyError, TypeError) as error:
        msg = f"not a message of ours: {line[:200]!r}"
        raise ValueError(msg) from error
    return message
