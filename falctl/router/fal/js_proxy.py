"""
fal's proxy for JavaScript, ``/api/fal/proxy``: the address that its client would call stands in a header.

The contract is that of the package @fal-ai/server-proxy, which an app of the web carries out in front of fal. Here
nothing is passed on: the address is turned into a path of ours, and answered as if it had been called.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from falctl.errors import BadRequestError
from falctl.router.edge.call import Call
from falctl.router.edge.edge import Room
from falctl.router.fal.elsewhere import LOCAL
from falctl.router.fal.tokens import PARAMETER

_TARGET: Final = b"x-fal-target-url"
_PATHS: Final = {
    "fal.run": "/run",
    "queue.fal.run": "/queue",
    "rest.fal.ai": "/fal/rest",
    "rest.alpha.fal.ai": "/fal/rest",
    "v3.fal.media": "/fal/cdn",
}
"""By host: where its paths are on this machine."""


_PLAIN: Final = re.compile(r"[!-~]+")
"""As in a request line: no blank, nothing but ASCII."""


class TargetError(BadRequestError):
    """An address that cannot be called on this machine."""

    status = 412


class JsProxy:
    """The room for ``/api/fal``. *route* answers a call under its new path."""

    def __init__(self, route: Room) -> None:
        self._route = route

    async def serve(self, call: Call) -> None:
        """
        Answer *call*.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        given = call.head.pop(_TARGET, None)
        if given is None:
            msg = "this is a proxy for fal's JavaScript client: the header x-fal-target-url must name what it calls"
            raise BadRequestError(msg)
        target = _split(given.decode("latin-1"))
        path = _PATHS[target.hostname or ""] + (target.path or "/")
        headers = [(name, value) for name, value in call.scope["headers"] if name != _TARGET]
        call.scope = {
            **call.scope,
            "headers": headers,
            "path": unquote(path),
            "raw_path": path.encode(),
            # Whoever comes this way has been let in already; a token is none of the app's business.
            "query_string": b"&".join(
                part for part in target.query.encode().split(b"&") if not part.startswith(PARAMETER)
            ),
        }
        await self._route(call)


def _split(given: str) -> SplitResult:
    try:
        target = urlsplit(given)
        _ = target.port  # whether it is one
    except ValueError:
        target = urlsplit("")
    if target.scheme not in ("http", "https") or not _PLAIN.fullmatch(given) or "@" in target.netloc:
        msg = f"x-fal-target-url: {given!r} is no address such as https://queue.fal.run/owner/app"
        raise TargetError(msg)
    if target.hostname not in _PATHS:
        msg = (
            f"x-fal-target-url: {target.hostname} is not on this machine; falctl has {LOCAL}, see docs/fal.md"
        )
        raise TargetError(msg)
    return target
