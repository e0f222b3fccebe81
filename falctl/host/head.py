"""Read what the router said about a request from its headers, and leave the app those that the client sent."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Final

from falctl.config_values import read_keep_alive
from falctl.core import keep_alive, lifetimes
from falctl.core.lifetimes import Lifetime
from falctl.core.types import Hint, RequestId
from falctl.wire import H_HINT, H_PREVIEW, H_RAW, H_REQUEST_ID, H_WANTED

RawHeaders = list[tuple[bytes, bytes]]

_INTERNAL: Final = frozenset(
    {H_RAW.encode(), H_WANTED.encode(), H_PREVIEW.encode(), keep_alive.HEADER.encode()}
)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a request's headers say."""

    request: RequestId
    hint: Hint | None
    headers: RawHeaders
    """As the client sent them: nothing of ours, and bytes above ASCII restored."""
    lifetime: Lifetime | None = None
    """Of the files that are stored while it is served; None: it does not say."""
    previews: bool = False
    """Somebody wants pictures of how far it is."""
    keep_alive_s: float | None = None
    """How long the models that it uses may idle, less than 0: for ever; None: it does not say."""


def read_head(raw: RawHeaders) -> RequestHead:
    """Return the head of a request with the header fields *raw*, whose names are in lower case."""
    internal = {name: value for name, value in raw if name in _INTERNAL}
    headers = [field for field in raw if field[0] not in _INTERNAL]
    if (restored := internal.get(H_RAW.encode())) is not None:
        headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in json.loads(restored)]
    known = dict(reversed(headers))  # of several with one name the first counts, as for the router
    given = known.get(H_REQUEST_ID.encode())
    return RequestHead(
        request=RequestId(given.decode("latin-1") if given else secrets.token_hex(16)),
        hint=_hint(known.get(H_HINT.encode()), internal.get(H_WANTED.encode())),
        headers=headers,
        lifetime=_lifetime(known.get(lifetimes.HEADER.encode())),
        previews=internal.get(H_PREVIEW.encode()) == b"1",
        keep_alive_s=read_keep_alive(internal.get(keep_alive.HEADER.encode(), b"").decode("latin-1")),
    )


def _lifetime(given: bytes | None) -> Lifetime | None:
    try:
        return None if given is None else lifetimes.read_header(given.decode("latin-1"))
    except ValueError:
        return None  # the router has refused it, unless it came another way


def _hint(from_header: bytes | None, from_body: bytes | None) -> Hint | None:
    if from_header:
        return Hint(from_header.decode("latin-1"))
    return Hint(json.loads(from_body)) if from_body else None
