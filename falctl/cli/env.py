"""`falctl env`: the variables by which fal's Python client finds the falctl that runs, over TLS."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Final

from falctl.cli.exec import direct, key_for
from falctl.errors import EXIT_OK, ConfigError
from falctl.home import find_home, find_instance

_LINES: Final = {"sh": "export {name}={value}", "fish": "set -gx {name} {value}", "plain": "{name}={value}"}
_NOTES: Final = """\
# fal's Python client over TLS: run, queue, status, cancel, streams, and realtime with use_jwt=False.
# Not covered, because their addresses are not taken from the environment: uploads (rest.fal.ai, v3.fal.media) and
# the tokens of realtime. `falctl exec -- COMMAND` covers them, and needs no TLS.
# SSL_CERT_FILE takes the place of the trust store in every program that gets it; the public authorities are in it.
"""


def env_command(shell: str) -> int:
    """
    Print the variables; the notes are comments to the shell.

    Raises:
        NotRunningError: no falctl runs.
        ConfigError: it does not speak TLS, or *shell* is none that we know.
    """
    if shell not in _LINES:
        msg = f"--shell {shell}: write {', '.join(_LINES)}"
        raise ConfigError(msg)
    variables = _variables()
    sys.stdout.write(_NOTES)
    for name, value in variables.items():
        quoted = value if shell == "plain" else shlex.quote(value)
        sys.stdout.write(_LINES[shell].format(name=name, value=quoted) + "\n")
    return EXIT_OK


def _variables() -> dict[str, str]:
    home = find_home()
    instance = find_instance(home)
    if not instance.tls_url:
        msg = 'this falctl does not speak TLS: start it with `falctl up --tls`, or put tls = "on" under [server]'
        raise ConfigError(msg)
    host = instance.tls_url.removeprefix("https://")
    return {
        "FAL_RUN_HOST": f"{host}/run",
        "FAL_QUEUE_RUN_HOST": f"{host}/queue",
        "SSL_CERT_FILE": str(home.tls_bundle),
        "FAL_KEY": key_for(instance.url, os.environ),
        "NO_PROXY": direct(instance.url, os.environ)["NO_PROXY"],
    }
