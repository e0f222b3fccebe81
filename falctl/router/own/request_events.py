"""
``GET /falctl/requests/{id}/events``: how far one request is, queued or direct, as server-sent events.

Each event is the whole state in JSON: ``queued`` with its position, ``loading`` with model, runner and the fraction that
is there (null: not known), ``running`` with runner, step and steps, ``ended`` with outcome and status, which is the last.
With ``?preview=1`` an event bears ``preview``, a data URI, whenever there is a new picture.

A client may ask before it has sent the request whose id it has chosen: the request has a moment to come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote

from falctl.clock import monotonic_s
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.errors import BadRequestError, MethodError, NotFoundError
from falctl.router.dispatch.apps import Apps
from falctl.router.edge.call import Call
from falctl.router.jobs.push import push
from falctl.router.jobs.watch import Watch, Watchers
from falctl.router.own.request_states import RequestStates, Table
from falctl.router.own.steps import Steps
from falctl.router.runners.fleet import FleetLinks
from falctl.tasks import spawn

AWAITED_S: Final = 5.0
_LOOK_S: Final = 0.1
_PATH: Final = "/falctl/requests/"
_WHAT: Final = "/events"
_ALLOWED: Final = ("GET", "HEAD")


class RequestEvents:
    """A room."""

    def __init__(self, states: RequestStates, steps: Steps, watchers: Watchers, previews: Previews) -> None:
        self._states = states
        self._steps = steps
        self._watchers = watchers
        self._previews = previews

    async def serve(self, call: Call) -> None:
        """
        Answer *call*.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        path: str = call.scope["path"]
        if call.scope["method"] not in _ALLOWED:
            msg = "this is asked for by GET"
            raise MethodError(msg, allowed=_ALLOWED)
        if not path.endswith(_WHAT):
            msg = f"nothing at {path}"
            raise NotFoundError(msg)
        call.body_read = True
        request = RequestId(unquote(path.removeprefix(_PATH).removesuffix(_WHAT)))
        teller = _Teller(request, self._states, self._steps, self._previews if _flag(call) else None)
        with self._watchers.watch(request) as watch:  # before the first look: nothing is missed in between
            await self._await(request, watch)
            await push(call, request, teller, watch)

    async def _await(self, request: RequestId, watch: Watch) -> None:
        """Return when *request* is known, or it has had the time to be."""
        until_at = monotonic_s() + AWAITED_S
        while not watch.over and monotonic_s() < until_at:
            try:
                await self._states.now(request)
            except NotFoundError:
                await watch.changed(within_s=_LOOK_S)
            else:
                return


class Previews:
    """Asks runners for pictures of the requests that they run."""

    def __init__(self, apps: Apps, fleet: FleetLinks) -> None:
        self._apps = apps
        self._fleet = fleet

    def want(self, request: RequestId, asked: set[tuple[RunnerId, Epoch]]) -> None:
        """Ask the runner of *request*, unless it is among those *asked*, which it joins."""
        for app in self._apps:
            for view in app.driver.scheduler.fleet.runners.values():
                runner = (view.runner, view.epoch)
                link = self._fleet.find(*runner)
                if request in view.in_use and runner not in asked and link is not None:
                    asked.add(runner)
                    spawn(link.preview(request), name=f"preview-{request}")


@dataclass(slots=True)
class _Teller:
    """Tells one client."""

    request: RequestId
    states: RequestStates
    steps: Steps
    previews: Previews | None
    """None: it wants no pictures."""
    table: Table | None = None
    shown: int = 0
    asked: set[tuple[RunnerId, Epoch]] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Return whether it has told that it has ended."""
        return self.table is not None and self.table["state"] == "ended"

    async def next(self) -> Table | None:
        """Return the state, with a picture if there is a new one, if any of it is new. Raises NotFoundError."""
        table = await self.states.now(self.request)
        if self.previews is not None:
            self.previews.want(self.request, self.asked)
        picture = None if self.previews is None else self.steps.preview(self.request)
        new = picture if picture is not None and picture.number != self.shown else None
        if table == self.table and new is None:
            return None
        self.table = table
        told = {"request_id": self.request, **table}
        if new is not None:
            self.shown = new.number
            told["preview"] = f"data:image/jpeg;base64,{new.data}"
        return told


def _flag(call: Call) -> bool:
    query: bytes = call.scope["query_string"]
    given = parse_qs(query.decode("latin-1")).get("preview", ["0"])[0]
    if given not in ("0", "1"):
        msg = f"preview={given[:40]!a}: write 1 for pictures, 0 or nothing for none"
        raise BadRequestError(msg)
    return given == "1"
