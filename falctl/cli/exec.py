"""`falctl exec`: become a program whose fal client calls the falctl that runs."""

from __future__ import annotations

import os
import signal
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from falctl.cli.server import ANSWER_WITHIN_S, ENV_KEY, AnswerError, KeyNeededError, ask
from falctl.errors import ConfigError, FalctlError
from falctl.home import find_home, find_instance
from falctl.redirect import sitecustomize

_ANY_KEY: Final = "local:local"
"""fal's clients send nothing without a key. A real one stays out of it: what cannot be redirected is refused there."""
_KEYS: Final = ("FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_FORCE_AUTH_BY_USER")
_LOOPBACK: Final = "127.0.0.1,localhost,::1"


class NotFoundCommandError(FalctlError):
    """There is no such program."""

    exit_code = 127


class NotRunnableCommandError(FalctlError):
    """It is none that can be run."""

    exit_code = 126


def exec_command(command: list[str]) -> NoReturn:
    """
    Become *command*, so that its exit code and the signals sent to it are its own.

    Raises:
        FalctlError: no falctl runs, it needs a key that is not there, or there is no such program.
    """
    url = find_instance(find_home()).url
    environ = client_environ(url, os.environ, key=key_for(url, os.environ))
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ):  # Python ignores them, and who is ignored stays so across exec
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environ)  # noqa: S606 - what the user typed
    except FileNotFoundError:
        msg = f"exec: there is no program {command[0]!r}"
        raise NotFoundCommandError(msg) from None
    except OSError as error:
        msg = f"exec: {command[0]!r} cannot be run ({error.strerror})"
        raise NotRunnableCommandError(msg) from None


def client_environ(url: str, environ: Mapping[str, str], *, key: str) -> dict[str, str]:
    """Return *environ* with what makes fal's Python client call the falctl at *url*."""
    folder = str(Path(sitecustomize.__file__).parent)
    kept = {name: value for name, value in environ.items() if name not in _KEYS}
    return {
        **kept,
        **direct(url, environ),
        "FAL_KEY": key,
        sitecustomize.ENV_URL: url,
        "PYTHONPATH": os.pathsep.join(filter(None, (folder, environ.get("PYTHONPATH")))),
    }


def direct(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep a proxy out of what goes to *url*: HTTP_PROXY would count even for loopback."""
    host = urllib.parse.urlsplit(url).hostname or ""
    names = dict.fromkeys((*_LOOPBACK.split(","), host))
    given = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    value = ",".join(filter(None, (given, *names)))
    return {"NO_PROXY": value, "no_proxy": value}


def key_for(url: str, environ: Mapping[str, str]) -> str:
    """
    Return the API key to call *url* with.

    Raises:
        ConfigError: it asks for one, and there is none in FALCTL_KEY or FAL_KEY.
        StartError: it does not answer.
    """
    known = environ.get(ENV_KEY) or environ.get("FAL_KEY")
    if not _asks_for_keys(url):
        return _ANY_KEY
    if not known:
        msg = (
            f"this falctl asks for an API key: set {ENV_KEY}=<key> or FAL_KEY=<key> (`falctl key` makes one)"
        )
        raise ConfigError(msg)
    return known


def _asks_for_keys(url: str) -> bool:
    try:
        ask(f"{url}/falctl/version", None, {}, timeout_s=ANSWER_WITHIN_S, with_key=False)
    except KeyNeededError:
        return True
    except AnswerError:
        return False  # it answers, and what it has to say is for its client
    return False
