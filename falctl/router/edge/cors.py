"""Which web pages may call us: the answer to a browser's Origin header and to its preflight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from falctl.errors import ForbiddenError
from falctl.router.edge.answers import RawHeaders

_EXPOSED: Final = (
    b"x-fal-request-id, x-fal-error-type, x-fal-request-timeout-type, x-fal-billable-units, x-fal-needs-retry, "
    b"x-fal-runner-hints, x-falctl-cache, x-falctl-origin, x-falctl-runner, retry-after, server-timing"
)
_PREFLIGHT_MAX_AGE_S: Final = 600


class Cors:
    """`server.allow_origins`, applied. Requests without an Origin header come from no page and always pass."""

    def __init__(self, allow_origins: Iterable[str]) -> None:
        self._allowed = frozenset(origin.lower().rstrip("/").encode() for origin in allow_origins)

    def check(self, head: Mapping[bytes, bytes]) -> RawHeaders:
        """
        Return the headers that let the page read the answer; none for a page of our own.

        Raises:
            ForbiddenError: a page of another origin that is not allowed.
        """
        origin = head.get(b"origin")
        if origin is None or _same_origin(origin, head.get(b"host", b"")):
            return []
        if b"*" not in self._allowed and origin.lower() not in self._allowed:
            shown = origin.decode("latin-1")
            msg = f'pages of {shown} may not call this falctl; add "{shown}" to server.allow_origins to let them'
            raise ForbiddenError(msg)
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    @staticmethod
    def is_preflight(method: str, head: Mapping[bytes, bytes]) -> bool:
        """Return whether a browser asks for permission; such a request bears no credentials and has no effect."""
        return method == "OPTIONS" and b"origin" in head and b"access-control-request-method" in head

    @staticmethod
    def permissions(head: Mapping[bytes, bytes]) -> RawHeaders:
        """Return what a preflight from an allowed origin is answered, besides what `check` returns."""
        headers = [
            (b"access-control-allow-methods", head[b"access-control-request-method"]),
            (b"access-control-max-age", str(_PREFLIGHT_MAX_AGE_S).encode()),
        ]
        if asked := head.get(b"access-control-request-headers"):
            headers.append((b"access-control-allow-headers", asked))
        if b"access-control-request-private-network" in head:
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers


def _same_origin(origin: bytes, host: bytes) -> bool:
    """Compare host and port alone: whoever serves https under our own name is a proxy in front of us."""
    scheme, _, place = origin.partition(b"://")
    return scheme.lower() in {b"http", b"https"} and place.lower() == host.lower()
