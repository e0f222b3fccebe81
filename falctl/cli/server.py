"""How a command asks the falctl that runs, over HTTP."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from email.message import Message
from typing import Any, Final

from falctl.errors import StartError
from falctl.home import Home, find_home, find_instance

ENV_KEY: Final = "FALCTL_KEY"
"""API key for the server, where it asks for one."""

ANSWER_WITHIN_S: Final = 10.0
"""For what the router answers itself; a request to an app takes as long as it takes."""

_UNAUTHORIZED: Final = 401

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see loopback


class AnswerError(StartError):
    """The answer was an error; ``detail`` is what it says."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(f"{detail} (HTTP {status})")
        self.detail = detail


class KeyNeededError(StartError):
    """It asks for an API key."""


def read(path: str) -> dict[str, Any]:
    """
    Return the JSON under a path of ours, ``/falctl/…``, from the falctl that runs.

    Raises:
        NotRunningError: none does.
        StartError: it refuses, or does not answer in time; the message says which.
    """
    return _tell(path, None)


def post(path: str) -> dict[str, Any]:
    """Have the falctl that runs do what a path of ours names; return its answer. Raises as `read`."""
    return _tell(path, b"{}")


def _tell(path: str, body: bytes | None) -> dict[str, Any]:
    home = find_home()
    url = find_instance(home).url
    try:
        answer, _ = ask(f"{url}{path}", body, _credentials(home), timeout_s=ANSWER_WITHIN_S)
    except AnswerError as error:
        raise StartError(error.detail) from None
    table: dict[str, Any] = json.loads(answer)
    return table


def ask(
    url: str,
    body: bytes | None,
    headers: dict[str, str],
    *,
    timeout_s: float | None = None,
    with_key: bool = True,
) -> tuple[bytes, Message]:
    """Return body and headers of the answer to a POST of *body*, or to a GET if it is None. Raises StartError."""
    known = with_key and ENV_KEY in os.environ
    key = {"Authorization": f"Key {os.environ[ENV_KEY]}"} if known else {}
    headers = {"Content-Type": "application/json", **key, **headers}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - the URL is our own server's
    try:
        with _opener.open(request, timeout=timeout_s) as answer:
            return answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        if error.code == _UNAUTHORIZED:
            msg = f"this falctl asks for an API key: set {ENV_KEY}=<key> (`falctl key` makes one)"
            raise KeyNeededError(msg) from None
        raise AnswerError(_detail(error), error.code) from None
    except OSError as error:
        msg = f"no answer from {url}: {error}"
        raise StartError(msg) from error


def _credentials(home: Home) -> dict[str, str]:
    """Return the header by which the owner of the state directory may read everything, if its token can be read."""
    try:
        return {"X-Falctl-Token": home.token.read_text().strip()}
    except OSError:
        return {}


def _detail(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        detail = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = text[:500]
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, d.get('loc', ())))}: {d.get('msg')}" for d in detail)
    return str(detail)
