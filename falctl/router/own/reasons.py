"""What the router tells of its decisions, as JSON: `GET /falctl/explain/{id}`, `/falctl/why`, `/falctl/ended`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
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
from falctl.errors import BadRequestError, NotFoundError, RequestError
from falctl.router.dispatch.apps import Apps, LocalApp

SCHEMA: Final = 1
"""Version of the three documents. A new field does not raise it; a removed or changed one does."""

ENDED_AT_ONCE_MAX: Final = 1024
"""Rows of one answer; who wants more asks again. It bounds the time for which the loop makes JSON."""

_STATES: Final = {"dispatched": "running", "bounced": "waiting"}
"""What a request is after a step of this kind; after any other the step's name says it."""


class Reasons:
    """Reads what the schedulers remember; changes nothing."""

    def __init__(self, apps: Apps, *, epoch: int) -> None:
        self._apps = apps
        self._epoch = epoch
        self._started_at = monotonic_s()

    def explain(self, request: str) -> dict[str, Any]:
        """
        Return a request's story, by its id or the beginning of it. Times ``t_s`` count from its arrival.

        Raises:
            NotFoundError: it is not remembered.
        """
        found = [(app, name) for app in self._apps if (name := app.driver.scheduler.decisions.find(request))]
        if len(found) != 1:
            raise NotFoundError(self._forgotten(request))
        [(app, name)] = found
        told = app.driver.scheduler.decisions.explain(name)
        assert told is not None, "it has just been found"
        return self._story(app, told)

    def why(self, model: str, alias: str | None) -> dict[str, Any]:
        """
        Return why requests for *model* wait, or where one would go.

        *alias* says of which app; None: of the one that knows the model.

        Raises:
            NotFoundError: no app is called so.
            BadRequestError: it takes an alias to tell which app is meant.
        """
        app = self._knowing(model) if alias is None else self._apps.find(alias)
        scheduler = app.driver.scheduler
        return {"schema": SCHEMA, **asdict(_why(scheduler, _hint(scheduler, model))), **self._named(app)}

    def ended(self, after: int | None, alias: str | None) -> dict[str, Any]:
        """
        Return the requests that ended after the one of that number, oldest first; None: none, only where we are.

        ``count`` is the number of the last one. A first row whose number is not ``after + 1`` tells of a gap. Each app
        counts for itself; *alias* says which.

        Raises:
            NotFoundError: no app is called so.
            BadRequestError: it takes an alias to tell which app is meant.
        """
        app = self._one() if alias is None else self._apps.find(alias)
        scheduler = app.driver.scheduler
        rows = [] if after is None else scheduler.ended.after(after, most=ENDED_AT_ONCE_MAX)
        return {
            "schema": SCHEMA,
            "epoch": self._epoch,
            "at": monotonic_s(),
            "count": scheduler.ended.count,
            "unfinished": len(scheduler.queue) + scheduler.in_flight,
            "requests": [asdict(row) for row in rows],
            **self._named(app),
        }

    # --- which app -----------------------------------------------------------------------------------

    def _one(self) -> LocalApp:
        apps = list(self._apps)
        if len(apps) > 1:
            raise BadRequestError(which_app(apps))
        return apps[0]

    def _knowing(self, model: str) -> LocalApp:
        """Return the app that *model* is waited for in, or warm."""
        if not self._apps.several:
            return self._one()
        knowing = [app for app in self._apps if _known(app.driver.scheduler, model)]
        if len(knowing) != 1:
            raise BadRequestError(which_app(self._apps))
        return knowing[0]

    def _named(self, app: LocalApp) -> dict[str, str]:
        return {"app": app.alias} if self._apps.several else {}

    def _forgotten(self, request: str) -> str:
        known = sum(len(app.driver.scheduler.decisions) for app in self._apps)
        since_s = monotonic_s() - self._started_at
        return (
            f"nothing is remembered of request {_shown(request[:64])}: this router knows the last "
            f"{known:,} requests since it started {since_s:.0f} s ago, and "
            "forgets earlier ones"
        )

    def _story(self, app: LocalApp, found: Explanation) -> dict[str, Any]:
        story = found.story
        last = story.steps[-1].kind if story.steps else "waiting"
        state = _STATES.get(last, last)
        conclusion = None
        if state == "waiting" and story.hint is not None:
            conclusion = _why(app.driver.scheduler, story.hint).conclusion
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
            **self._named(app),
        }


def _names(model: str) -> tuple[Hint, Hint]:
    """Return *model* as it may be known: in a header it came as bytes, which are decoded as latin-1."""
    return Hint(model), Hint(model.encode(errors="surrogatepass").decode("latin-1"))


def _hint(scheduler: Scheduler, model: str) -> Hint:
    state, names = scheduler.state, _names(model)
    return next((n for n in names if state.queue.count(n) or any(state.fleet.warming(n))), names[0])


def _known(scheduler: Scheduler, model: str) -> bool:
    state = scheduler.state
    return any(state.queue.count(n) or any(state.fleet.warming(n)) for n in _names(model))


def _why(scheduler: Scheduler, hint: Hint) -> reasoning.Why:
    return reasoning.why(scheduler.state, scheduler.policy, hint, now=monotonic_s())


def which_app(apps: Iterable[LocalApp]) -> str:
    """Return what is said to somebody who has to name one of *apps*."""
    return f"there are several apps: say of which, app={'|'.join(app.alias for app in apps)} (on the command line --app)"


def _shown(text: str) -> str:
    """Return *text* as a terminal may show it."""
    return text if text.isprintable() else ascii(text)


def reason_routes(reasons: Reasons) -> list[Route]:
    """Return the paths under which *reasons* are read."""

    async def explain(request: Request) -> Response:
        return _answer(lambda: reasons.explain(request.path_params["request"]))

    async def why(request: Request) -> Response:
        model = request.query_params.get("model", "")
        if not model:
            raise HTTPException(400, "name a model: /falctl/why?model=NAME")
        return _answer(lambda: reasons.why(model, request.query_params.get("app")))

    async def ended(request: Request) -> Response:
        after = request.query_params.get("after")
        if after is not None and not (after.isascii() and after.isdecimal() and len(after) < 19):
            raise HTTPException(400, f"after={after[:40]!r}: write the number of a request, from 0 up")
        number = None if after is None else int(after)
        return _answer(lambda: reasons.ended(number, request.query_params.get("app")))

    return [
        Route("/falctl/explain/{request:path}", explain),
        Route("/falctl/why", why),
        Route("/falctl/ended", ended),
    ]


def _answer(tell: Callable[[], dict[str, Any]]) -> Response:
    try:
        table = tell()
    except RequestError as error:
        raise HTTPException(error.status, error.detail) from None
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
