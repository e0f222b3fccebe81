"""Whether a request asks for a websocket as RFC 6455 has it; found out before anything is done for it."""

from __future__ import annotations

from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from falctl.errors import BadRequestError, RequestError
from falctl.router.edge.call import Call


class NoUpgradeError(RequestError):
    """The request says that it wants a websocket, and not how."""

    status, error_type = 426, "bad_request"


def offered_subprotocols(call: Call) -> list[str]:
    """
    Return the subprotocols that a request for a websocket offers.

    Raises:
        NoUpgradeError, BadRequestError: it is none, by RFC 6455; says why.
    """
    scope = call.scope
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    request = Request("/", Headers(fields), method=scope["method"], protocol=f"HTTP/{scope['http_version']}")
    response = ServerProtocol().accept(request)
    if response.status_code != 101:
        kind = NoUpgradeError if response.status_code == 426 else BadRequestError
        raise kind(response.body.decode().partition("\n")[0])
    offers = [value for name, value in fields if name == "sec-websocket-protocol"]
    return [name.strip() for value in offers for name in value.split(",")]
