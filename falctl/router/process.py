"""The router process: what it does with its parts, from the start to the end that the supervisor tells it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import socket
from typing import Final

from falctl import wire
from falctl.board.board import Board
from falctl.config import Config
from falctl.errors import ConfigError, StartError
from falctl.home import Home
from falctl.lifeline import Control
from falctl.router.parts import Parts
from falctl.tasks import spawn

log = logging.getLogger(__name__)

_GARBAGE_OBJECTS: Final = 20_000
"""
New objects between two looks for cycles: Python's 700 is less than ten requests make.

Measured: about 10 % less CPU per request, 64 clients, 3 interleaved rounds, 2 shared cores, CPython 3.11.
"""
_OPEN_FILES_MAX: Final = 65536
_GREETINGS_WITHIN_S: Final = 1.0
"""A runner that is stopped does not answer; clients need not wait for it."""
_CLOSE_WITHIN_S: Final = 2.0


class Router:
    """One router, from its first look at the board to its last answer."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, control: Control) -> None:
        """Serve until the supervisor says `wire.Stop`."""
        assert control.listen_fd is not None, "the supervisor hands the listening socket down"
        parts, messages = self._parts, control.messages(asyncio.get_running_loop())
        parts.memory.recall()
        parts.uploads.store.begin()
        parts.fleet.discover()
        parts.publisher.publish()
        if jobs := parts.keeper.recover():
            log.info("jobs.recovered count=%d", jobs)
        helpers = [
            spawn(parts.publisher.publish_for_ever(), name="publish"),
            spawn(parts.files.sweep_for_ever(), name="sweep"),
            spawn(parts.memory.keep_for_ever(), name="memory"),
            spawn(parts.keeper.keep_for_ever(), name="jobs"),
            spawn(parts.webhooks.deliver_for_ever(), name="webhooks"),
            spawn(parts.uploads.sweep_for_ever(), name="uploads"),
        ]
        await parts.fleet.greeted(within_s=_GREETINGS_WITHIN_S)
        await parts.listener.open(socket.socket(fileno=control.listen_fd))
        if control.tls_fd is not None:
            tls = parts.tls()
            helpers.append(spawn(tls.renew_for_ever(), name="tls"))
            await parts.listener.open(socket.socket(fileno=control.tls_fd), tls.context)
        gc.set_threshold(_GARBAGE_OBJECTS, 20, 20)
        gc.collect()
        gc.freeze()  # what the imports left lives as long as we do: the collector need not walk it in mid-request
        control.send(wire.Ready())
        log.debug("router.ready")
        while not isinstance(message := await messages.get(), wire.Stop):
            self._obey(message, control)
        parts.end_streams()
        await parts.listener.close(within_s=_CLOSE_WITHIN_S)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)  # none may write into a store that is closed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await parts.logs.flush()
                await parts.memory.keep()
        parts.keeper.close()
        await parts.fleet.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await parts.activity.idle()  # who was cut off learns it now
        log.info("router.stopped")

    def _obey(self, message: wire.Message, control: Control) -> None:
        match message:
            case wire.RunnerChanged(runner, epoch, state, reason):
                self._parts.fleet.learn(runner, epoch, state, reason)
            case wire.Reload(config):
                self._parts.reload(Config.model_validate(config))
            case wire.Drain():
                self._parts.ledger.note("draining")
                self._parts.publisher.draining = True
                self._parts.apps.drain()
                spawn(self._drained(control), name="drain")
            case _:
                log.warning("control.unexpected kind=%s", type(message).__name__)

    async def _drained(self, control: Control) -> None:
        await self._parts.activity.idle()
        await self._parts.keeper.idle()
        self._parts.end_streams()  # after what has ended has been told
        await self._parts.webhooks.settle(within_s=_CLOSE_WITHIN_S)  # the next router may be days away
        control.send(wire.Drained())


def serve(spec: wire.RouterSpec, control: Control, home: Home) -> None:
    """Run the router of *spec* until it is told to stop. Blocks."""
    import uvloop

    _raise_open_files()
    board = Board.attach(control.board_fd)

    async def main() -> None:
        await Router(Parts(spec, board, home)).run(control)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except (ConfigError, StartError) as error:
        control.send(wire.Failed(str(error), error.exit_code))
        raise SystemExit(error.exit_code) from None


def _raise_open_files() -> None:
    """Each running request takes two descriptors; the usual soft limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
