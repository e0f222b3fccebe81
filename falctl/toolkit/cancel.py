"""The error by which a running request learns that it has been cancelled."""

from __future__ import annotations

from falctl.errors import RequestError


class RequestCancelled(RequestError):  # noqa: N818 - reads as what happened; fal's own SDK names it so
    """The client has cancelled this request; raised by ``self.runner.progress``. Let it pass."""

    status, error_type = 499, "client_cancelled"

    def __init__(self, detail: str = "Request cancelled") -> None:
        super().__init__(detail)
