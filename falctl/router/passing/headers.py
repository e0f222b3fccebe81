"""Which headers cross the router, in both directions, and in which form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

from falctl.core.types import RequestId, Wanted
from falctl.router.edge.answers import RawHeaders
from falctl.router.passing.options import FOR_HOSTS
from falctl.wire import H_RAW, H_REQUEST_ID, H_WANTED

_OURS: Final = b"x-falctl-"
_FORM: Final = b"application/x-www-form-urlencoded"
_OBJECT: Final = re.compile(rb"[ \t\n\r]*\{")

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, 7.6.1: they speak of one connection only."""

_NOT_TO_HOST: Final = _HOP_BY_HOP | {b"content-length", b"expect", H_REQUEST_ID.encode()}
"""The body is sent whole, with a length of its own; the request's id is ours to give."""

_NO_BODY: Final = frozenset({204, 304})
_NOT_TO_CLIENT: Final = _HOP_BY_HOP | {
    H_REQUEST_ID.encode(),
    b"x-fal-stop-runner",
    b"x-fal-needs-retry",
    b"x-fal-runner-health-check",
}
"""The last three are words of an app to the platform."""


def to_host(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    request: RequestId,
    wanted: Wanted | None,
    hide: frozenset[bytes],
) -> list[tuple[str, str]]:
    """
    Return what the host is sent for a client's *headers*, without those named in *hide*.

    A value that is not ASCII goes into `wire.H_RAW`, since the HTTP client would encode it anew.
    """
    drop = _NOT_TO_HOST | hide | _nominated(headers)
    kept: list[tuple[str, str]] = [(H_REQUEST_ID, request)]
    raw: list[tuple[str, str]] = []
    for name, value in headers:
        if name in drop or (name.startswith(_OURS) and name not in FOR_HOSTS):
            continue
        # Blanks around a value are no part of it (RFC 9110, 5.5), but our parser leaves those behind it.
        text = value.decode("latin-1").rstrip(" \t")
        (kept if value.isascii() else raw).append((name.decode("latin-1"), text))
    if raw:
        kept.append((H_RAW, json.dumps(raw)))
    if wanted is not None and wanted.source == "body":
        kept.append((H_WANTED, json.dumps(wanted.hint)))
    return kept


def to_client(headers: Iterable[tuple[bytes, bytes]], *, status: int) -> RawHeaders:
    """
    Return what the client is sent of an app's *headers*, their values byte for byte.

    Where the *status* allows no body a length would be a promise that is not kept. An app's own CORS
    headers never pass: who may read its answers is decided by `server.allow_origins` alone.
    """
    headers = [(name.lower(), value) for name, value in headers]
    drop = _NOT_TO_CLIENT | _nominated(headers) | ({b"content-length"} if status in _NO_BODY else frozenset())
    return [
        (name, value)
        for name, value in headers
        if name not in drop and not name.startswith((_OURS, b"access-control-"))
    ]


def _nominated(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the headers that a Connection header names as its own."""
    values = [value for name, value in headers if name == b"connection"]
    if not values:
        return frozenset()
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def is_json(content_type: bytes | None, body: bytes) -> bool:
    """Return whether *body* is meant as JSON: it is declared so, or begins as an object and is declared as nothing better."""
    if content_type is not None and b"json" in content_type.lower():
        return True
    undeclared = content_type is None or content_type.lower().startswith(_FORM)
    return undeclared and _OBJECT.match(body) is not None


def declare_json(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> RawHeaders:
    """Return *headers*; the form that ``curl -d`` declares becomes the JSON that it carries. No form begins with ``{``."""
    known = list(headers)
    content_type = next((value for name, value in known if name == b"content-type"), None)
    if not is_json(content_type, body) or (content_type is not None and b"json" in content_type.lower()):
        return known
    return [*((n, v) for n, v in known if n != b"content-type"), (b"content-type", b"application/json")]
