"""`falctl down`: ask the supervisor to stop, and wait until it has."""

from __future__ import annotations

import os
import select
import signal
import sys

from falctl.errors import EXIT_FAILED, EXIT_OK, NotRunningError
from falctl.home import find_home, find_instance


def down_command(*, timeout_s: float, now: bool) -> int:
    """Return the exit code: 0 when it has ended, 1 when it has not within *timeout_s*. Raises NotRunningError."""
    instance = find_instance(find_home())
    try:
        process = os.pidfd_open(instance.pid)
    except ProcessLookupError:
        msg = "falctl is not running; start it with `falctl up`"
        raise NotRunningError(msg) from None
    try:
        # Two of one kind may arrive as one, so the second request to stop is another signal.
        for number in (signal.SIGTERM, signal.SIGINT)[: 2 if now else 1]:
            signal.pidfd_send_signal(process, number)
        ended, _, _ = select.select([process], [], [], timeout_s)
    finally:
        os.close(process)
    if not ended:
        sys.stderr.write(
            f"falctl: pid {instance.pid} still runs after {timeout_s:g} s; try `falctl down --now`\n"
        )
        return EXIT_FAILED
    sys.stderr.write("falctl: stopped\n")
    return EXIT_OK
