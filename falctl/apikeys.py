"""API keys: made here, stored only as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "falctl_"
_RANDOM_BYTES: Final = 24
"""192 bits are 32 characters of base64: too many to guess, so one fast unsalted hash is enough."""


def new_key() -> str:
    """Return a fresh key: ``falctl_`` and 32 URL-safe random characters. Nobody can recover it later."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_key(key: str) -> str:
    """Return ``sha256:<64 hex>``, the form that `server.api_keys` holds."""
    # An undecodable byte of a header or variable arrives as a surrogate: it must not match, nor must it raise.
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def matches(presented: str, hashes: Sequence[str]) -> bool:
    """Return whether *presented* is a key of *hashes*; takes as long for the first as for the last, or for none."""
    digest = hash_key(presented).encode()
    found = False
    for known in hashes:
        found |= hmac.compare_digest(digest, known.encode())
    return found
