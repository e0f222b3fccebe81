"""What fal's clients may ask fal for that is not on this machine: refused with a sentence that says so."""

from __future__ import annotations

from typing import Final

from falctl.errors import NotFoundError
from falctl.router.edge.call import Call

LOCAL: Final = "run, queue, realtime and streams, their tokens, file uploads and the keys of webhooks"
"""Of what fal's clients call, in words."""


class NotLocalError(NotFoundError):
    """A service of fal's that falctl does not have."""

    error_type = "not_local"


async def refuse(call: Call) -> None:
    """
    Be the room for the rest of ``/fal``.

    Raises:
        NotLocalError: always.
    """
    path: str = call.scope["path"]
    msg = f"{path} stands for a service of fal's that is not on this machine; falctl has {LOCAL}, see docs/fal.md"
    raise NotLocalError(msg)
