"""What a client asks of falctl itself for one request, by headers that no app sees: `X-Falctl-…`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from falctl.config_values import KEEP_ALIVE_CHOICE, read_keep_alive
from falctl.core import keep_alive
from falctl.core.types import RequestId
from falctl.errors import BadRequestError
from falctl.wire import H_PREVIEW

ON_DISCONNECT: Final = b"x-falctl-on-disconnect"
REQUEST_ID: Final = b"x-falctl-request-id"
PREVIEW: Final = H_PREVIEW.encode()
KEEP_ALIVE: Final = keep_alive.HEADER.encode()
FOR_HOSTS: Final = frozenset({PREVIEW, KEEP_ALIVE})
"""What the runner is told, too."""

_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{8,64}")
_FLAGS: Final = {b"0": False, b"1": True}
_AT_ITS_END: Final = {b"cancel": False, b"finish": True}


def wants_previews(head: Mapping[bytes, bytes]) -> bool:
    """Return whether pictures of how far it is are to be made. Raises BadRequestError."""
    given = head.get(PREVIEW, b"0").strip()
    if given not in _FLAGS:
        msg = f"X-Falctl-Preview: {_shown(given)} is neither 1 nor 0"
        raise BadRequestError(msg)
    return _FLAGS[given]


def check_keep_alive(head: Mapping[bytes, bytes]) -> None:
    """Raise BadRequestError if what is said of how long models may idle is not what `cache.keep_alive` could say."""
    given = head.get(KEEP_ALIVE)
    if given is not None and read_keep_alive(given.decode("latin-1")) is None:
        msg = f'X-Falctl-Keep-Alive: {_shown(given)} is no time to keep a model; write {KEEP_ALIVE_CHOICE}, as "10m"'
        raise BadRequestError(msg)


def outlives_client(head: Mapping[bytes, bytes]) -> bool:
    """Return whether it is to run to its end although its client leaves. Raises BadRequestError."""
    given = head.get(ON_DISCONNECT, b"cancel").strip().lower()
    if given not in _AT_ITS_END:
        msg = f"X-Falctl-On-Disconnect: {_shown(given)} is neither cancel nor finish"
        raise BadRequestError(msg)
    return _AT_ITS_END[given]


def chosen_name(head: Mapping[bytes, bytes]) -> RequestId | None:
    """Return the id that its client wants it to have, so as to know it before the answer; None: any. Raises BadRequestError."""
    given = head.get(REQUEST_ID)
    if given is None:
        return None
    if not _NAME.fullmatch(given.strip()):
        msg = f"X-Falctl-Request-Id: {_shown(given)} is not 8 to 64 letters, digits, - and _, as a UUID is"
        raise BadRequestError(msg)
    return RequestId(given.strip().decode("ascii"))


def _shown(given: bytes) -> str:
    return repr(given[:80].decode("latin-1"))
