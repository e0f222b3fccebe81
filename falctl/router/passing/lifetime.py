"""What a request's headers say of how long files are kept: those that an app stores for it, or that it uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from falctl.clock import wall_s
from falctl.core import lifetimes
from falctl.core.lifetimes import Lifetime
from falctl.errors import BadRequestError

_NAMES: Final = (lifetimes.HEADER, "x-fal-object-lifecycle")
"""fal's clients send both with an upload to its CDN, the first alone otherwise."""


def wanted_lifetime(head: Mapping[bytes, bytes]) -> Lifetime | None:
    """
    Return what *head* says; None: nothing.

    Raises:
        BadRequestError: what it says is no lifetime; names the header and the fix.
    """
    name = next((name for name in _NAMES if name.encode() in head), None)
    if name is None:
        return None
    try:
        return lifetimes.read_header(head[name.encode()].decode("latin-1"))
    except ValueError as error:
        msg = f"{name.title()}: {error}"
        raise BadRequestError(msg) from error


def mark_of(lifetime: Lifetime | None) -> str:
    """Return the part of a new file's name that says when it ends; empty: `files.keep` does."""
    return "" if lifetime is None else lifetime.mark(wall_s())
