"""A client of the websockets of a host, on its Unix socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, unix_connect

from tests.host.harness import STEP_S, Host


@contextmanager
def talking(host: Host, path: str, request: str = "r-1", **options: Any) -> Iterator[ClientConnection]:
    headers = {"X-Fal-Request-Id": request} | options.pop("headers", {})
    with unix_connect(
        host.spec.socket,
        f"ws://host{path}",
        additional_headers=headers,
        open_timeout=STEP_S,
        close_timeout=STEP_S,
        max_size=None,
        **options,
    ) as websocket:
        yield websocket


def say(websocket: ClientConnection, **message: Any) -> Any:
    websocket.send(msgpack.packb(message))
    answer = websocket.recv(STEP_S)
    return msgpack.unpackb(answer) if isinstance(answer, bytes) else json.loads(answer)


def closed(websocket: ClientConnection) -> tuple[int | None, str | None]:
    """Return how it ends, once it does."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            websocket.recv(STEP_S)
    return websocket.close_code, websocket.close_reason
