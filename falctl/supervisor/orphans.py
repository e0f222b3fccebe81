"""
Adopts what dead runners leave behind, so that no zombie stays, whatever process 1 of this machine does.

A guard and the grandchildren of a runner lose their parent with it. As a *subreaper* we become their parent
(prctl(2), PR_SET_CHILD_SUBREAPER); in a container whose first process is falctl we would be anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36
_TRIES_MAX: Final = 50
_PAUSE_S: Final = 0.02
"""A process that hangs in a driver cannot be killed, and must not keep us."""


def adopt() -> None:
    """Become the parent of every orphan among our descendants."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Orphans:
    """Collects the dead among the adopted. A child that has just been spawned looks like one for an instant."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def reap(self, ours: Collection[int]) -> None:
        """Collect every dead child that was here at the last call too, but *ours*: somebody waits for those."""
        strangers = set(_children()) - set(ours)
        for pid in strangers & self._seen:
            _collect(pid)
        self._seen = strangers


async def end_all(ours: Collection[int]) -> None:
    """
    Kill and collect every child but *ours*: all runners are dead, and nothing will be spawned any more.

    That finds even a grandchild that has left its process group and has cleared its environment.
    """
    for _ in range(_TRIES_MAX):
        strangers = set(_children()) - set(ours)
        if not strangers:
            return
        for pid in strangers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _collect(pid)
        await asyncio.sleep(_PAUSE_S)  # a dead one may have had children, which are ours then
    log.warning("orphans.left pids=%s", sorted(strangers))


def _collect(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    """Return our children; those of every thread, as the kernel lists them per thread."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found
