"""The limits of clients' connections, shared by all of them and changed by a reload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Limits:
    """Deadlines are in seconds."""

    header_s: float
    send_s: float
    keep_alive_s: float
    message_bytes: int
    """Of one message of a websocket, from a client."""
