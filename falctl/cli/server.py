"""How a command asks the falctl that runs, over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
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
        self.status = status


class RefusedError(StartError):
    """It refuses what was asked of it; the message says why."""

    def __init__(self, detail: str, status: int) -> None:
        super().__init__(detail)
        self.status = status


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


def post(path: str, *, timeout_s: float | None = ANSWER_WITHIN_S) -> dict[str, Any]:
    """Have the falctl that runs do what a path of ours names; return its answer. Raises as `read`."""
    return _tell(path, b"{}", timeout_s=timeout_s)


def post_lines(path: str) -> Iterator[dict[str, Any]]:
    """Do the same where each line of the answer is a JSON object, told as it comes, however long that takes."""
    home = find_home()
    url = f"{find_instance(home).url}{path}"
    try:
        with _open(url, b"{}", _credentials(home), timeout_s=None) as answer:
            for line in answer:
                yield json.loads(line)
    except AnswerError as error:
        raise RefusedError(error.detail, error.status) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        msg = f"falctl went away: {error}"
        raise StartError(msg) from error


def _tell(path: str, body: bytes | None, *, timeout_s: float | None = ANSWER_WITHIN_S) -> dict[str, Any]:
    home = find_home()
    url = find_instance(home).url
    try:
        answer, _ = ask(f"{url}{path}", body, _credentials(home), timeout_s=timeout_s)
    except AnswerError as error:
        raise RefusedError(error.detail, error.status) from None
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
    try:
        with _open(url, body, headers, timeout_s=timeout_s, with_key=with_key) as answer:
            return answer.read(), answer.headers
    except OSError as error:
        msg = f"no answer from {url}: {error}"
        raise StartError(msg) from error


def _open(
    url: str,
    body: bytes | None,
    headers: dict[str, str],
    *,
    timeout_s: float | None,
    with_key: bool = True,
) -> http.client.HTTPResponse:
    """Return the answer, to be read and closed. Raises AnswerError, KeyNeededError, StartError."""
    known = with_key and ENV_KEY in os.environ
    key = {"Authorization": f"Key {os.environ[ENV_KEY]}"} if known else {}
    headers = {"Content-Type": "application/json", **key, **headers}
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - the URL is our own server's
    try:
        answer: http.client.HTTPResponse = _opener.open(request, timeout=timeout_s)
        return answer  # noqa: TRY300 - what may raise stands above
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
