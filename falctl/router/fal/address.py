"""How fal's clients name an app in a path: ``/{room}/{owner}/{alias}[/path]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from falctl.errors import NotFoundError

_HOSTS_OWN: Final = b"falctl"
_NAMESPACES: Final = frozenset({b"workflows", b"comfy"})
"""Before the owner; then an app's id has three parts."""


@dataclass(frozen=True, slots=True)
class Address:
    """What a path under one of fal's rooms addresses."""

    app: str
    """``owner/alias``, as the client wrote it."""
    path: bytes
    """The rest, of the app's own routes: "/" or longer, as the client wrote it."""

    @property
    def alias(self) -> str:
        """Return the app's name without its owner."""
        return alias_of(self.app)


def alias_of(app: str) -> str:
    """Return the alias of ``owner/alias``."""
    return app.rpartition("/")[2]


def read_address(raw_path: bytes) -> Address:
    """
    Return what *raw_path* addresses, its first part being the room.

    Raises:
        NotFoundError: it names no owner or no alias, or a path that a host keeps for us.
    """
    room, *parts = raw_path.split(b"/")[1:]
    size = 3 if parts[:1] and parts[0] in _NAMESPACES else 2
    if len(parts) < size or not all(parts[:size]):
        shape = f"/{room.decode('latin-1')}/{{owner}}/{{alias}}"
        msg = f"apps are addressed as {shape}, followed by a path of theirs"
        raise NotFoundError(msg)
    address = Address(b"/".join(parts[:size]).decode("latin-1"), b"/" + b"/".join(parts[size:]))
    if parts[size:] and unquote_to_bytes(parts[size]) == _HOSTS_OWN:
        msg = "/falctl is no path of an app: it is how we speak to the app's process"
        raise NotFoundError(msg)
    return address
