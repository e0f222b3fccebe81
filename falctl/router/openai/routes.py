"""
OpenAI's images API: ``POST /v1/images/generations``, ``GET /v1/models`` and ``/v1/models/{id}``.

A request for *n* images is *n* requests to the app's ``/``, each through the scheduler like any other, so that they
are drawn by as many cards as are free. They belong together: when the client goes, or one of them fails, the others
are cancelled.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from falctl.clock import wall_clock
from falctl.errors import NotFoundError, RequestError
from falctl.router.dispatch.apps import LocalApp
from falctl.router.edge.answers import RawHeaders, openai_body
from falctl.router.edge.body import Intake
from falctl.router.edge.call import Call
from falctl.router.openai.models import Models
from falctl.router.openai.pictures import pictures_of
from falctl.router.openai.wishes import Wishes, read_wishes
from falctl.router.own.files import FileStore
from falctl.router.passing.inner import InnerAnswer, InnerRequest
from falctl.router.passing.proxy import Proxy
from falctl.router.passing.reach import Target
from falctl.tasks import spawn
from falctl.wire import H_HINT

_PATH: Final = b"/"
_MODELS: Final = "/v1/models"
_PLAIN: Final = re.compile(r"[!-~]+")
_PASSED_ON: Final = frozenset({b"retry-after", b"x-falctl-cache", b"x-falctl-runner", b"x-fal-runner-hints", b"server-timing"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Failure:
    error: RequestError


class OpenAiApi:
    """The room for ``/v1``."""

    def __init__(self, proxy: Proxy, models: Models, intake: Intake, files: FileStore) -> None:
        self._proxy = proxy
        self.models = models
        self._intake = intake
        self._files = files

    async def serve(self, call: Call) -> None:
        """
        Answer *call*.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        method: str = call.scope["method"]
        path: str = call.scope["path"].rstrip("/")
        match method, path:
            case "POST", "/v1/images/generations":
                await self._draw(call)
            case "GET", "/v1/models":
                call.body_read = True
                table = await asyncio.to_thread(self.models.table)
                await call.answer_json(200, {"object": "list", "data": table})
            case "GET", _ if path.startswith(f"{_MODELS}/"):
                call.body_read = True
                name = path.removeprefix(f"{_MODELS}/")
                await call.answer_json(200, await asyncio.to_thread(self.models.one, name))
            case _:
                msg = f"nothing at {method} {path}: of OpenAI's API falctl has images/generations and models"
                raise NotFoundError(msg)

    # --- images ------------------------------------------------------------------------------------

    async def _draw(self, call: Call) -> None:
        wishes, requests, app = await self._read(call)
        call.connection.on_gone = lambda: _leave(requests)
        answers = await self._answers(requests, app)
        call.connection.on_gone = None
        call.request = requests[0].call.request  # what `falctl explain` knows
        failed = next((answer for answer in answers if answer.status >= 400), None)
        if failed is not None:
            await _pass_failure_on(call, failed)
            return
        pictures = [await pictures_of(answer.body, wishes.form, self._files) for answer in answers]
        table = {"created": int(wall_clock().timestamp()), "data": [one for some in pictures for one in some]}
        await call.answer_json(200, table, _receipt(answers) if len(answers) == 1 else None)

    async def _read(self, call: Call) -> tuple[Wishes, list[InnerRequest], LocalApp]:
        try:
            wishes = read_wishes(await self._intake.read(call))
        finally:
            self._intake.release(call)
        app, model = self.models.find(wishes.model)
        headers = (
            []
            if H_HINT.encode() in call.head or not _PLAIN.fullmatch(model)
            else [(H_HINT.encode(), model.encode())]
        )
        bodies = [json.dumps({**fields, "model": model}).encode() for fields in wishes.inputs]
        return wishes, [InnerRequest(call, _PATH, body=body, headers=headers) for body in bodies], app

    async def _answers(self, requests: Sequence[InnerRequest], app: LocalApp) -> list[InnerAnswer]:
        """
        Return the answers of all; with the first that fails, and that one alone, the others are cancelled.

        Raises:
            RequestError: one of them was refused.
        """
        target = Target(app, _PATH)

        async def ask(request: InnerRequest) -> InnerAnswer | _Failure:
            try:
                return await request.answer(lambda call: self._proxy.serve(call, target))
            except RequestError as error:
                return _Failure(error)

        tasks = [spawn(ask(request), name=f"image-{request.call.request}") for request in requests]
        for task in asyncio.as_completed(tasks):
            match await task:
                case _Failure(error):
                    _leave(requests)
                    raise error
                case InnerAnswer(status=status) as answer if status >= 400:
                    _leave(requests)
                    return [answer]
        return [task.result() for task in tasks]


def _leave(requests: Sequence[InnerRequest]) -> None:
    for request in requests:
        request.leave()


def _receipt(answers: Sequence[InnerAnswer]) -> RawHeaders:
    return [(name, value) for name, value in answers[0].headers if name.lower() in _PASSED_ON]


async def _pass_failure_on(call: Call, answer: InnerAnswer) -> None:
    """Tell in OpenAI's words what the app said in fal's."""
    try:
        said: Any = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    detail: Any = said.get("detail") if isinstance(said, dict) else None
    kind = said.get("error_type") if isinstance(said, dict) else None
    message, param = _first_problem(detail)
    status = 400 if answer.status == 422 else answer.status
    body = openai_body(message, status=status, code=kind if isinstance(kind, str) else None, param=param)
    await call.answer_json(status, body, _receipt([answer]))


def _first_problem(detail: Any) -> tuple[str, str | None]:
    """Return what is wrong, and with which parameter if the app says so."""
    match detail:
        case [{"loc": [*_, str(name)], "msg": str(text)}, *_]:
            return f"{name}: {text}", name
        case str(text):
            return text, None
        case _:
            return "the app failed; falctl's log says why", None
