"""The limits that an app sets itself, and the one of its start."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from falctl.errors import StartError
from falctl.tasks import spawn


@dataclass(frozen=True, slots=True)
class Limits:
    """None: the app sets none, and the configuration's alone counts, as it does in any case if it is shorter."""

    startup_timeout_s: float | None = None
    request_timeout_s: float | None = None
    grace_s: float | None = None
    """How long running requests get to finish at the end; this one goes before the configuration."""
    keep_alive_s: float | None = None
    """A runner that has served and is idle for so long makes way for a fresh process, which frees its memory."""


async def within(timeout_s: float | None, setup: Coroutine[Any, Any, None]) -> None:
    """
    Await *setup* for *timeout_s* at most; a sync one goes on in its thread, to the end of the process.

    Raises:
        StartError: it takes longer.
    """
    if timeout_s is None:
        await setup
        return
    task = spawn(_outcome(setup), name="setup")
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        msg = f"setup() takes longer than the app's startup_timeout, {timeout_s:g} s"
        raise StartError(msg)
    if (error := task.result()) is not None:
        raise error


async def _outcome(setup: Coroutine[Any, Any, None]) -> StartError | None:
    """Return an expected failure as a value: it has been logged, and the task would log it again."""
    try:
        await setup
    except StartError as error:
        return error
    return None
