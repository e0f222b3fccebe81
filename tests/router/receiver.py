"""Somebody who asked to be called: a real HTTP server on loopback that does as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.router.fake_host import PATIENCE_S
from tests.wait import until


@dataclass(frozen=True)
class Heard:
    """A call as it was received."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


Reaction = Callable[[BaseHTTPRequestHandler], None]


def saying(status: int, *headers: tuple[str, str]) -> Reaction:
    def react(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in (*headers, ("content-length", "0")):
            handler.send_header(name, value)
        handler.end_headers()

    return react


class Receiver:
    """Use as a context; a port of an earlier one is taken again."""

    def __init__(self, react: Reaction | None = None, *, port: int = 0) -> None:
        self.heard: list[Heard] = []
        self.react = react or saying(200)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                body = self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.heard.append(Heard(self.path, headers, body))
                receiver.react(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """The caller has gone in the middle of an answer, as it may."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def wait(self, count: int = 1) -> list[Heard]:
        """Return what was heard, once that is *count* calls."""
        until(lambda: len(self.heard) >= count, within_s=4 * PATIENCE_S, what=f"{count} calls")
        return list(self.heard)

    def about(self, request: str) -> list[Heard]:
        return [heard for heard in self.heard if heard.json["request_id"] == request]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify(heard: Heard, jwks: dict[str, Any]) -> None:
    """Verify the signature step by step, as fal's documentation tells receivers to. Raises InvalidSignature."""
    names = ("request-id", "user-id", "timestamp")
    lines = [heard.headers[f"x-fal-webhook-{name}"] for name in names]
    message = "\n".join([*lines, hashlib.sha256(heard.body).hexdigest()]).encode()
    signature = bytes.fromhex(heard.headers["x-fal-webhook-signature"])
    (key,) = jwks["keys"]
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    x = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
    Ed25519PublicKey.from_public_bytes(x).verify(signature, message)
