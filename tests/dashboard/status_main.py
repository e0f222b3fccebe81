"""`falctl status` without the other commands, so that what it imports can be measured: flags as of the command."""

from __future__ import annotations

import sys

from falctl.cli.status import status_command

if __name__ == "__main__":
    flags = sys.argv[1:]
    code = status_command(
        once="--once" in flags, json_output="--json" in flags, no_color="--no-color" in flags
    )
    if "--list-modules" in flags:
        sys.stderr.write(" ".join(sys.modules))
    sys.exit(code)
