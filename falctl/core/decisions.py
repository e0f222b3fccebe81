"""
What was decided, and why: the stories of the last requests and loads, bounded by number and by bytes.

Kept as values and rendered only when somebody asks. A router that starts anew begins with an empty one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from falctl.core.events import Arrived, Dispatch, Load, LoadEnded, LoadShare, Refuse, Released
from falctl.core.policies.base import Candidate
from falctl.core.sources import Tier
from falctl.core.types import Epoch, Hint, Priority, RequestId, RunnerId

REQUESTS_MAX: Final = 4096
LOADS_MAX: Final = 1024
BYTES_MAX: Final = 16 << 20
"""Of each of the two, estimated: texts count two bytes a character, the rest by `_RECORD_BYTES`."""

PREFIX_MIN: Final = 6
"""Characters of a request's id by which it can be found; the status view shows seven at least."""

_RECORD_BYTES: Final = 460
_STEP_BYTES: Final = 250
_CANDIDATE_BYTES: Final = 230
# measured: tracemalloc, 1,000 stories with 0 to 16 candidates a step, CPython 3.11, x86-64, 2026-11-23; rounded up

StepKind = Literal["dispatched", "bounced", "refused", "cancelled", "ended", "lost"]


@dataclass(slots=True)
class Step:
    """
    Something that happened to a request; None where a figure does not belong to that kind, or nobody knows it.

    Nobody changes one; see `falctl.core.policies.base.Candidate` for why it is not frozen.
    """

    at: float
    kind: StepKind
    runner: RunnerId | None = None
    epoch: Epoch | None = None
    reason: str = ""
    warm: bool | None = None
    waited_s: float | None = None
    cache: LoadShare | None = None
    """Its share in a load job that ended while it waited."""
    load_s: float | None = None
    exec_s: float | None = None
    candidates: tuple[Candidate, ...] = ()
    tier: Tier | None = None
    """Where it loaded from, of one that did."""


@dataclass(slots=True)
class RequestStory:
    """A request, and all that was decided about it so far."""

    request: RequestId
    hint: Hint | None
    client: str
    priority: Priority
    arrived_at: float
    due: float
    """Its arrival as far as turns go; later behind its client's own backlog or with low priority."""
    start_by: float | None
    steps: list[Step] = field(default_factory=list)
    size_bytes: int = 0


@dataclass(slots=True)
class LoadStory:
    """A load job: why it was made, and how it ended."""

    number: int
    at: float
    hint: Hint
    runner: RunnerId
    epoch: Epoch
    evict: tuple[Hint, ...]
    reason: str
    request: RequestId | None
    """The request whose turn made it."""
    waiting: int
    """How many waited for the model then."""
    candidates: tuple[Candidate, ...]
    ended_at: float | None = None
    ok: bool | None = None
    """None: it is under way, or its end was not heard of."""
    load_s: float | None = None
    tier: Tier | None = None
    """Where it took its bytes from, of one that ended well."""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """A request's story with the load jobs of its model that began or ran while it waited."""

    story: RequestStory
    loads: tuple[LoadStory, ...]


@dataclass(slots=True)
class Decisions:
    """Two rings. The scheduler writes; anybody on its thread may read."""

    requests_max: int = REQUESTS_MAX
    loads_max: int = LOADS_MAX
    bytes_max: int = BYTES_MAX
    _requests: OrderedDict[RequestId, RequestStory] = field(default_factory=OrderedDict)
    _loads: OrderedDict[int, LoadStory] = field(default_factory=OrderedDict)
    _open: dict[tuple[RunnerId, Hint], LoadStory] = field(default_factory=dict)
    _requests_bytes: int = 0
    _loads_bytes: int = 0
    _numbers: int = 0

    # --- writing ---------------------------------------------------------------------------------

    def arrived(self, event: Arrived, *, due: float, now: float) -> None:
        """Begin the story of a request, also of one that is refused at once."""
        if event.request in self._requests:
            return  # the driver tells again of one whose runner went down before it was let in
        hint = None if event.wanted is None else event.wanted.hint
        story = RequestStory(event.request, hint, event.client, event.priority, now, due, event.start_by)
        story.size_bytes = _RECORD_BYTES + 2 * (len(hint or "") + len(event.client))
        self._requests[event.request] = story
        self._requests_bytes += story.size_bytes
        self._trim_requests()

    def renamed(self, request: RequestId, hint: Hint | None) -> None:
        """The model that a request wants is called *hint* by its runners."""
        if (story := self._requests.get(request)) is not None:
            more = 2 * (len(hint or "") - len(story.hint or ""))
            story.hint, story.size_bytes = hint, story.size_bytes + more
            self._requests_bytes += more

    def dispatched(self, dispatch: Dispatch, candidates: tuple[Candidate, ...], *, now: float) -> None:
        """A request goes to a runner."""
        step = Step(
            now,
            "dispatched",
            dispatch.runner,
            dispatch.epoch,
            dispatch.reason,
            dispatch.warm,
            dispatch.waited_s,
            dispatch.cache,
            dispatch.load_s if dispatch.cache else None,
            candidates=candidates,
        )
        self._add(dispatch.request, step)

    def ended(self, event: Released, *, now: float) -> None:
        """A request has given its slot back."""
        step = Step(now, "ended", event.runner, event.epoch, load_s=event.load_s, exec_s=event.exec_s)
        if event.load_s:
            step.tier = event.tier
        self._add(event.request, step)

    def happened(
        self, request: RequestId, kind: StepKind, *, now: float, runner: RunnerId | None = None
    ) -> None:
        """It was bounced or cancelled, or its runner was lost."""
        self._add(request, Step(now, kind, runner))

    def refused(self, refuse: Refuse, *, now: float) -> None:
        """It was refused."""
        self._add(refuse.request, Step(now, "refused", reason=refuse.code))

    def load_began(
        self,
        load: Load,
        candidates: tuple[Candidate, ...],
        *,
        now: float,
        request: RequestId | None,
        waiting: int,
    ) -> None:
        """A load job is made, for the request whose turn it is and *waiting* in all."""
        self._numbers += 1
        story = LoadStory(
            self._numbers,
            now,
            load.hint,
            load.runner,
            load.epoch,
            load.evict,
            load.reason,
            request,
            waiting,
            candidates,
        )
        story.size_bytes = _RECORD_BYTES + 2 * len(load.hint) + _size(load.evict, candidates)
        self._loads[story.number] = self._open[load.runner, load.hint] = story
        self._loads_bytes += story.size_bytes
        self._trim_loads()

    def load_ended(self, event: LoadEnded, *, now: float) -> None:
        """A load job is over."""
        if (story := self._open.pop((event.runner, event.hint), None)) is not None:
            story.ended_at, story.ok, story.load_s = now, event.ok, event.load_s
            story.tier = event.tier if event.ok else None

    def loads_known(self, runner: RunnerId, loading: Iterable[Hint], *, now: float) -> None:
        """These are all the loads that *runner* has under way; the others are over, nobody heard how."""
        kept = frozenset(loading)
        for key in [key for key in self._open if key[0] == runner and key[1] not in kept]:
            self._open.pop(key).ended_at = now

    # --- reading ---------------------------------------------------------------------------------

    def find(self, prefix: str) -> RequestId | None:
        """Return the one remembered request that is called or begins so; None: none, or several."""
        if prefix in self._requests:
            return RequestId(prefix)
        found = (
            [name for name in self._requests if name.startswith(prefix)] if len(prefix) >= PREFIX_MIN else []
        )
        return found[0] if len(found) == 1 else None

    def explain(self, request: RequestId) -> Explanation | None:
        """Return what is remembered of *request*; None: nothing, it is too long ago or never came."""
        story = self._requests.get(request)
        if story is None:
            return None
        until = next((s.at for s in reversed(story.steps) if s.kind in _LEFT_THE_QUEUE), None)
        return Explanation(
            story, tuple(load for load in self._loads.values() if _concerns(load, story, until))
        )

    def __len__(self) -> int:
        return len(self._requests)

    def check(self) -> None:
        """Assert the bounds."""
        assert len(self._requests) <= self.requests_max
        assert len(self._loads) <= self.loads_max
        assert self._requests_bytes == sum(s.size_bytes for s in self._requests.values()) <= self.bytes_max
        assert self._loads_bytes == sum(s.size_bytes for s in self._loads.values()) <= self.bytes_max
        assert all(story.number in self._loads for story in self._open.values())

    # --- bounds ----------------------------------------------------------------------------------

    def _add(self, request: RequestId, step: Step) -> None:
        story = self._requests.get(request)
        if story is None:
            return
        story.steps.append(step)
        size = _STEP_BYTES + _size((), step.candidates)
        story.size_bytes += size
        self._requests_bytes += size
        self._trim_requests()

    def _trim_requests(self) -> None:
        while len(self._requests) > self.requests_max or self._requests_bytes > self.bytes_max:
            self._requests_bytes -= self._requests.popitem(last=False)[1].size_bytes

    def _trim_loads(self) -> None:
        while len(self._loads) > self.loads_max or self._loads_bytes > self.bytes_max:
            story = self._loads.popitem(last=False)[1]
            self._loads_bytes -= story.size_bytes
            if self._open.get((story.runner, story.hint)) is story:
                del self._open[story.runner, story.hint]


_LEFT_THE_QUEUE: Final = frozenset({"dispatched", "refused", "cancelled"})


def _concerns(load: LoadStory, story: RequestStory, until: float | None) -> bool:
    """Return whether *load* is of the story's model and began or ran while it waited."""
    if load.hint != story.hint or (until is not None and load.at > until):
        return False
    return load.ended_at is None or load.ended_at >= story.arrived_at


def _size(evict: tuple[Hint, ...], candidates: tuple[Candidate, ...]) -> int:
    texts = sum(map(len, evict)) + sum(len(v) for c in candidates for v in c.evict)
    return _CANDIDATE_BYTES * len(candidates) + 2 * texts
