"""Calls of the app's web application from within its own process: no socket, no slot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Scope


async def post(web: ASGIApp, path: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> int | str:
    """Return the status that *web* answers an empty object at *path* with; what it raised, in words, if it has none."""
    status = 0
    unread = [b"{}"]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    try:
        await web(_scope(path, headers), receive, send)
    except Exception as error:  # noqa: BLE001 - starlette raises again what has been answered and logged
        return status or f"it raised {type(error).__name__}"
    return status


def _scope(path: str, headers: Sequence[tuple[bytes, bytes]]) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers],
        "client": None,
        "server": None,
    }
