"""What the supervisor can tell a host: drain, stop. And its beat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from falctl.clock import monotonic_s
from falctl.errors import EXIT_OK, FalctlError, StartError
from falctl.host.prints.aside import aside
from falctl.host.retire import retired
from falctl.host.start import Served, call_hook
from falctl.host.telling import from_the_app
from falctl.lifeline import Control
from falctl.tasks import spawn
from falctl.wire import EXIT_RETIRED, Drain, Drained, Ending, LogLevel, Message, Ready, Stop

log = logging.getLogger(__name__)

BEAT_S: Final = 1.0
LOADING_BEAT_S: Final = 0.2
"""While a model loads: each beat tells how far it is."""
"""The row is written, and the socket's file looked for, at least this often."""


class Life:
    """A host from its first message to its last."""

    def __init__(self, control: Control, *, teardown_timeout_s: float) -> None:
        self._control = control
        self._teardown_timeout_s = teardown_timeout_s
        self._served: Served | None = None
        self._stopped = asyncio.Event()
        self._told_app = False

    async def live(self, starting: Coroutine[Any, Any, Served]) -> int:
        """Serve what *starting* starts until `Stop`, or until it retires; return the exit code. Raises what *starting* raises."""
        spawn(self._obey(self._control.messages(asyncio.get_running_loop())), name="control")
        start = spawn(_outcome(starting), name="start")
        stop = spawn(self._stopped.wait(), name="stop")
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            log.info("host.stopped_while_starting")
            return EXIT_OK
        served = start.result()
        if isinstance(served, FalctlError):
            raise served
        self._served = served
        spawn(_beat(served), name="beat")
        retire = spawn(retired(served), name="retire")
        self._control.send(Ready(served.slots.count, served.limits.grace_s, served.limits.app_name))
        await asyncio.wait({stop, retire}, return_when=asyncio.FIRST_COMPLETED)
        self._tell_app()
        await self._end(served)
        return EXIT_OK if self._stopped.is_set() else EXIT_RETIRED

    async def _obey(self, messages: asyncio.Queue[Message]) -> None:
        while True:
            match await messages.get():
                case Drain(within_s):
                    spawn(self._drain(within_s), name="drain")
                case Ending():
                    self._tell_app()
                    if self._served is not None:
                        self._served.slots.leaving.set()
                case Stop():
                    self._stopped.set()
                case LogLevel(level):
                    logging.getLogger().setLevel(level.upper())
                    log.debug("log.level level=%s", level)
                case other:
                    log.warning("control.unexpected kind=%s", type(other).__name__)

    def _tell_app(self) -> None:
        """On the main thread: the app's own are taken by the very requests that this is about."""
        if self._served is None or self._told_app:
            return
        self._told_app = True
        try:
            with aside():
                self._served.app.handle_exit()
        except Exception as error:
            log.exception("app.handle_exit_failed", exc_info=from_the_app(error))

    async def _drain(self, within_s: float) -> None:
        if (served := self._served) is not None:
            served.slots.drain()
            served.report.draining()
            try:
                await asyncio.wait_for(served.slots.wait_idle(), within_s)
            except TimeoutError:
                log.warning("runner.not_drained held=%d", len(served.slots.held))
        self._control.send(Drained())

    async def _end(self, served: Served) -> None:
        served.slots.drain()
        for ticket in served.slots.held:
            ticket.cancel()
        served.listener.close()
        began_at = monotonic_s()
        ending = spawn(_teardown(served), name="teardown")
        await asyncio.wait({ending}, timeout=self._teardown_timeout_s)
        took = "done" if ending.done() else "timed_out"
        log.info("app.torn_down result=%s after_s=%.2f", took, monotonic_s() - began_at)


async def _outcome(starting: Coroutine[Any, Any, Served]) -> Served | FalctlError:
    """Return an expected failure as a value: it has been logged, and the task would log it again."""
    try:
        return await starting
    except FalctlError as error:
        return error


async def _beat(served: Served) -> None:
    while True:
        await asyncio.sleep(LOADING_BEAT_S if served.report.loads_now else BEAT_S)
        served.report.publish()
        await served.listener.check()


async def _teardown(served: Served) -> None:
    try:
        await call_hook(served.app.teardown, "teardown()", threads=served.threads)
    except StartError as error:
        log.error("app.teardown_failed %s", error)  # noqa: TRY400 - its traceback has been logged
