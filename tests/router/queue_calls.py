"""The queue as tests call it, and apps that answer a job in some way."""

from __future__ import annotations

from typing import Any

from starlette.types import Send

from tests.router.client import Reply, ask
from tests.router.fake_host import PATIENCE_S, Handler, Seen, answer
from tests.router.harness import Setup
from tests.wait import until


def submit(
    setup: Setup, path: str = "", body: bytes = b"{}", headers: dict[str, str] | None = None
) -> dict[str, Any]:
    reply = ask(setup, path=f"/queue/owner/app{path}", body=body, headers=headers)
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json()
    return found


def status(setup: Setup, request: str, query: str = "") -> dict[str, Any]:
    reply = ask(setup, "GET", f"/queue/owner/app/requests/{request}/status{query}")
    found: dict[str, Any] = reply.json()
    assert reply.status == (200 if found["status"] == "COMPLETED" else 202)
    return found


def becomes(setup: Setup, request: str, word: str) -> dict[str, Any]:
    return until(
        lambda: found if (found := status(setup, request))["status"] == word else {},
        within_s=PATIENCE_S,
        what=f"{request} {word}",
    )


def result(setup: Setup, request: str) -> Reply:
    becomes(setup, request, "COMPLETED")
    return ask(setup, "GET", f"/queue/owner/app/requests/{request}")


def cancel(setup: Setup, request: str) -> Reply:
    return ask(setup, "PUT", f"/queue/owner/app/requests/{request}/cancel")


def in_turn(*handlers: Handler) -> Handler:
    """Return a handler that is each of *handlers* once, then the last for ever."""
    left = list(handlers)

    async def handle(seen: Seen, send: Send) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(seen, send)

    return handle


def saying(status: int, body: bytes = b"{}", *headers: tuple[bytes, bytes]) -> Handler:
    async def handle(_: Seen, send: Send) -> None:
        await answer(send, body, status=status, headers=headers)

    return handle


async def breaks(_: Seen, send: Send) -> None:
    """Begin an answer, and break off."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    msg = "the app fails"
    raise ConnectionError(msg)
