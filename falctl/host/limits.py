"""The limits that an app sets itself, what else of it concerns others, and the limit of its start."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from falctl.config import Config
from falctl.errors import StartError
from falctl.tasks import spawn
from falctl.wire import Declared, HostSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """None: the app sets none, and the configuration's alone counts."""

    startup_timeout_s: float | None = None
    request_timeout_s: float | None = None
    grace_s: float | None = None
    """How long running requests get to finish at the end; this one goes before the configuration."""
    keep_alive_s: float | None = None
    """A runner that has served and is idle for so long makes way for a fresh process, which frees its memory."""
    app_name: str = ""
    start_timeout_s: float | None = None
    """How long a request may wait that says nothing itself."""
    retries: Mapping[str, int] = field(default_factory=dict)
    """Of a queued request: further attempts by condition."""
    retry_skips: tuple[str, ...] = ()

    def declared(self, config: Config) -> Declared:
        """Return what the supervisor must know, who otherwise goes by *config*: the limits that are longer."""
        runners = config.runners
        return Declared(
            _longer(self.startup_timeout_s, runners.setup_timeout),
            _longer(self.request_timeout_s, runners.request_timeout),
        )


def cuts(declared_s: float | None, key: str, spec: HostSpec, config: Config) -> float | None:
    """Return the limit ``runners.KEY`` if somebody has set it and it is shorter than what the app declares."""
    limit_s: float = getattr(config.runners, key)
    return limit_s if key in spec.given and _longer(declared_s, limit_s) is not None else None


def _longer(limit_s: float | None, than_s: float) -> float | None:
    return limit_s if limit_s is not None and limit_s > than_s else None


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
