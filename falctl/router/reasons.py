"""What the router tells of its decisions, as JSON: `GET /falctl/explain/{id}`, `/falctl/why`, `/falctl/ended`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from falctl.clock import monotonic_s
from falctl.core import why as reasoning
from falctl.core.decisions import Explanation, LoadStory, RequestStory, Step
from falctl.core.scheduler import Scheduler
from falctl.core.types import Hint
from falctl.errors import NotFoundError

SCHEMA: Final = 1
"""Version of the three documents. A new field does not raise it; a removed or changed one does."""

ENDED_AT_ONCE_MAX: Final = 1024
"""Rows of one answer; who wants more asks again. It bounds the time for which the loop makes JSON."""

_STATES: Final = {"dispatched": "running", "bounced": "waiting"}
"""What a request is after a step of this kind; after any other the step's name says it."""


class Reasons:
    """Reads what the scheduler remembers; changes nothing."""

    def __init__(self, scheduler: Scheduler, *, epoch: int) -> None:
        self._scheduler = scheduler
        self._epoch = epoch
        self._started_at = monotonic_s()

    def explain(self, request: str) -> dict[str, Any]:
        """
        Return a request's story, by its id or the beginning of it. Times ``t_s`` count from its arrival.

        Raises:
            NotFoundError: it is not remembered.
        """
        decisions = self._scheduler.decisions
        name = decisions.find(request)
        found = None if name is None else decisions.explain(name)
        if found is None:
            raise NotFoundError(self._forgotten(request))
        return self._story(found)

    def why(self, model: str) -> dict[str, Any]:
        """Return why requests for *model* wait, or where one would go."""
        return {"schema": SCHEMA, **asdict(self._why(self._hint(model)))}

    def ended(self, after: int | None) -> dict[str, Any]:
        """
        Return the requests that ended after the one of that number, oldest first; None: none, only where we are.

        ``count`` is the number of the last one. A first row whose number is not ``after + 1`` tells of a gap.
        """
        scheduler = self._scheduler
        rows = [] if after is None else scheduler.ended.after(after, most=ENDED_AT_ONCE_MAX)
        return {
            "schema": SCHEMA,
            "epoch": self._epoch,
            "at": monotonic_s(),
            "count": scheduler.ended.count,
            "unfinished": len(scheduler.queue) + scheduler.in_flight,
            "requests": [asdict(row) for row in rows],
        }

    def _hint(self, model: str) -> Hint:
        """Return *model* as it is known: in a header it came as bytes, which are decoded as latin-1."""
        names = (Hint(model), Hint(model.encode(errors="surrogatepass").decode("latin-1")))
        state = self._scheduler.state
        return next((n for n in names if state.queue.count(n) or any(state.fleet.warming(n))), names[0])

    def _why(self, hint: Hint) -> reasoning.Why:
        return reasoning.why(self._scheduler.state, self._scheduler.policy, hint, now=monotonic_s())

    def _forgotten(self, request: str) -> str:
        decisions = self._scheduler.decisions
        since_s = monotonic_s() - self._started_at
        return (
            f"nothing is remembered of request {_shown(request[:64])}: this router knows the last "
            f"{len(decisions):,} requests since it started {since_s:.0f} s ago, and "
            "forgets earlier ones"
        )

    def _story(self, found: Explanation) -> dict[str, Any]:
        story = found.story
        last = story.steps[-1].kind if story.steps else "waiting"
        state = _STATES.get(last, last)
        conclusion = None
        if state == "waiting" and story.hint is not None:
            conclusion = self._why(story.hint).conclusion
        return {
            "schema": SCHEMA,
            "request": story.request,
            "hint": story.hint,
            "client": story.client,
            "priority": story.priority,
            "state": state,
            "arrived_ago_s": monotonic_s() - story.arrived_at,
            "due_s": story.due - story.arrived_at,
            "start_by_s": None if story.start_by is None else story.start_by - story.arrived_at,
            "steps": [_step(step, story) for step in story.steps],
            "loads": [_load(load, story) for load in found.loads],
            "why": conclusion,
        }


def _shown(text: str) -> str:
    """Return *text* as a terminal may show it."""
    return text if text.isprintable() else ascii(text)


def reason_routes(reasons: Reasons) -> list[Route]:
    """Return the paths under which *reasons* are read."""

    async def explain(request: Request) -> Response:
        try:
            return _json(reasons.explain(request.path_params["request"]))
        except NotFoundError as error:
            raise HTTPException(404, error.detail) from None

    async def why(request: Request) -> Response:
        model = request.query_params.get("model", "")
        if not model:
            raise HTTPException(400, "name a model: /falctl/why?model=NAME")
        return _json(reasons.why(model))

    async def ended(request: Request) -> Response:
        after = request.query_params.get("after")
        if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 19):
            raise HTTPException(400, f"after={after[:40]!r}: write the number of a request, from 0 up")
        return _json(reasons.ended(None if after is None else int(after)))

    return [
        Route("/falctl/explain/{request:path}", explain),
        Route("/falctl/why", why),
        Route("/falctl/ended", ended),
    ]


def _json(table: dict[str, Any]) -> Response:
    # In ASCII: a hint may hold half a surrogate pair, which is no UTF-8.
    return Response(json.dumps(table), media_type="application/json")


def _step(step: Step, story: RequestStory) -> dict[str, Any]:
    table = asdict(step)
    return {"t_s": table.pop("at") - story.arrived_at, **table}


def _load(load: LoadStory, story: RequestStory) -> dict[str, Any]:
    table = asdict(load)
    del table["size_bytes"]
    at, ended_at = table.pop("at"), table.pop("ended_at")
    ended_s = None if ended_at is None else ended_at - story.arrived_at
    return {"t_s": at - story.arrived_at, "ended_t_s": ended_s, **table}
