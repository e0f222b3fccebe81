"""Where receivers of webhooks fetch the key: the JWKS, at the place under which fal's REST host is served here."""

from __future__ import annotations

from typing import Final

from falctl.errors import MethodError, NotFoundError
from falctl.router.edge.call import Call
from falctl.router.edge.edge import Room
from falctl.router.edge.guard import KEYS_PATH
from falctl.router.fal.webhooks.signing import Signer

KEYS_ROOM: Final = KEYS_PATH.rpartition("/")[0].strip("/")
_READ: Final = ("GET", "HEAD")


def keys_room(signer: Signer) -> Room:
    """Return the room that answers for the key of *signer*, which everybody may know."""
    table = signer.jwks()

    async def serve(call: Call) -> None:
        if call.scope["path"] != KEYS_PATH:
            msg = f"nothing at {call.scope['path']}; the key of webhooks is at {KEYS_PATH}"
            raise NotFoundError(msg)
        if call.scope["method"] not in _READ:
            msg = "the key of webhooks is asked for by GET"
            raise MethodError(msg, allowed=_READ)
        call.body_read = True
        await call.answer_json(200, table, [(b"cache-control", b"public, max-age=3600")])

    return serve
