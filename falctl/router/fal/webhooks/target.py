"""Where a webhook goes: which addresses are taken, and who shares one receiver."""

from __future__ import annotations

from typing import Final

from yarl import URL

from falctl.errors import BadRequestError

URL_BYTES_MAX: Final = 2048
_SCHEMES: Final = frozenset({"http", "https"})


def check_target(url: str) -> None:
    """
    Return if *url* can be called. Loopback and private addresses can: the receiver usually runs on this machine.

    Raises:
        BadRequestError: it cannot; names it and says why.
    """
    if reason := _fault(url):
        shown = url if len(url) <= 100 else f"{url[:100]}..."
        msg = f"fal_webhook: {shown!r} {reason}"
        raise BadRequestError(msg)


def receiver(url: str) -> str:
    """Return who is called at *url*: those that share it share the slots of one."""
    target = URL(url)
    return f"{target.scheme}://{target.host}:{target.port}"


def _fault(url: str) -> str:
    if len(url.encode("utf-8", "replace")) > URL_BYTES_MAX:
        return f"is over {URL_BYTES_MAX} bytes"
    if any(not char.isprintable() or char.isspace() for char in url):
        return "has blanks or control characters in it"
    try:
        target = URL(url)
        host, port = target.host, target.port
        (host or "").encode("idna")  # as a lookup would: "a..b" has no address for as long as it is tried
    except ValueError as error:
        return f"is no URL: {error}"
    if target.scheme not in _SCHEMES or not host or not port:
        return "is no http or https URL with a host"
    if target.user is not None or target.password is not None:
        return "has credentials in it, which would stand in the queue's database; put a secret into its path"
    return ""
