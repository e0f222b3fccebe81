"""
Checks that a policy of the user's can be made before anything is started with it.

In a process of its own: whatever its import brings along, or does, must not happen to the supervisor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from falctl.config_keys import plain
from falctl.errors import ConfigError
from falctl.policy_load import PolicyError, is_foreign, load_foreign

WITHIN_S: Final = 60.0
_FINE: Final = "falctl: this policy can be made"
_NOT: Final = "falctl: this policy cannot be made: "


def check_policy(name: str, *, cwd: Path) -> None:
    """
    Return if `routing.policy` = *name* can be made. Blocks while it is imported elsewhere, up to `WITHIN_S`.

    Raises:
        ConfigError: it cannot; says why and what to do.
    """
    if not is_foreign(name):
        return
    command = [sys.executable, "-P", "-m", "falctl.cli.policy_check", name, str(cwd)]
    try:
        # Its exit code says nothing: the supervisor may have collected it as an orphan.
        output = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=WITHIN_S, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        raise _refusal(name, f"its import does not end within {WITHIN_S:g} s") from None
    last = output.decode(errors="replace").rstrip().rpartition("\n")[2]
    if last != _FINE:
        why = last.removeprefix(_NOT) if last.startswith(_NOT) else "its import ended the process"
        raise _refusal(name, why)


def _refusal(name: str, why: str) -> ConfigError:
    shipped = 'or name a policy that falctl ships, such as "auto"'
    return ConfigError(f'routing.policy = "{plain(name)}": {why}; mend it, {shipped}')


def main(name: str, cwd: str) -> None:
    """Try it, say how it went on the last line of the output, and end whatever it has started."""
    try:
        load_foreign(name, cwd=Path(cwd))
        told = _FINE
    except PolicyError as error:
        told = _NOT + " ".join(str(error).split())
    sys.stdout.write(f"\n{told}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
