"""
Passes: texts that let their bearer send a file, unguessable and good for an hour.

A pass is its end and a signature over that and what it is for, so nobody has to remember it and a restarted router
knows it. The secret is made anew by each `falctl up`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import Final

from falctl.clock import wall_clock

GOOD_FOR_S: Final = 3600
_FORM: Final = re.compile(r"([0-9a-f]{1,12})-([A-Za-z0-9_-]{32})")
_SIGNATURE_BYTES: Final = 24


class Passes:
    """Makes and checks passes."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"falctl upload\0" + secret.encode()).digest()

    def make(self, subject: str) -> str:
        """Return a pass for *subject*, of letters that any part of a URL may hold."""
        ends_at = int(wall_clock().timestamp()) + GOOD_FOR_S
        return f"{ends_at:x}-{self._sign(subject, ends_at)}"

    def holds(self, given: str, subject: str) -> bool:
        """Return whether *given* is a pass for *subject* that has not ended."""
        match = _FORM.fullmatch(given)
        if match is None:
            return False
        ends_at = int(match[1], 16)
        right = hmac.compare_digest(match[2], self._sign(subject, ends_at))
        return right and wall_clock().timestamp() < ends_at

    def _sign(self, subject: str, ends_at: int) -> str:
        digest = hmac.digest(self._key, f"{ends_at}\0{subject}".encode(), "sha256")
        return base64.urlsafe_b64encode(digest[:_SIGNATURE_BYTES]).decode()


def end_of(given: str) -> datetime:
    """Return when a pass that `Passes.make` made ends."""
    return datetime.fromtimestamp(int(given.partition("-")[0], 16), UTC)
