"""How a running request learns that it has been cancelled: by this error, and how soon."""

from __future__ import annotations

from typing import Final

from falctl.errors import RequestError

LOOK_S: Final = 0.05
"""How late whoever waits for a lock, a load or room hears that its request is cancelled."""


class RequestCancelled(RequestError):  # noqa: N818 - reads as what happened; fal's own SDK names it so
    """The client has cancelled this request; raised by ``self.runner.progress``. Let it pass."""

    status, error_type = 499, "client_cancelled"

    def __init__(self, detail: str = "Request cancelled") -> None:
        super().__init__(detail)
