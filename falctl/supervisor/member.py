"""One child over all its incarnations: performs what its `Life` decides, and reports what happens to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from falctl import tasks, wire
from falctl.clock import monotonic_s
from falctl.core.lifecycle import (
    NO_EPOCH,
    BecameReady,
    CouldNotStart,
    Declared,
    End,
    Event,
    Exited,
    Kill,
    Life,
    LifeLimits,
    Spawn,
    Staged,
)
from falctl.core.types import Epoch
from falctl.errors import EXIT_FAILED
from falctl.supervisor.child import Child, Launch, spawn
from falctl.wire import EXIT_RETIRED, Drained, Failed, Message, Ready, Stage, Stop

log = logging.getLogger(__name__)

_LEVELS: Final = {
    "backoff": logging.WARNING,
    "failed": logging.WARNING,
    "draining": logging.DEBUG,  # whoever stops falctl is told in one line, not in one per process
    "stopped": logging.DEBUG,
}


class Member:
    """
    A runner or the router, as the supervisor sees it.

    *launch* makes the `Launch` of an incarnation; *changed* is called after every change of state, *buried* after
    every exit, before the machine hears of it.
    """

    def __init__(
        self,
        name: str,
        limits: LifeLimits,
        *,
        launch: Callable[[Epoch], Launch],
        changed: Callable[[], None],
        buried: Callable[[], None],
    ) -> None:
        self.name = name
        self.life = Life(limits)
        self.child: Child | None = None
        self.drained = asyncio.Event()
        self.exit_code = EXIT_FAILED
        """The exit code that `falctl up` should end with if this child cannot start."""
        self.grace_s: float | None = None
        """How long what runs in it gets to finish at the end, if its app says so."""
        self.app_name = ""
        """What its app calls itself; empty: it does not say."""
        self._launch = launch
        self._changed = changed
        self._buried = buried
        self._incarnation: asyncio.Task[None] | None = None
        self._doomed = NO_EPOCH
        """The incarnation that was to be killed, perhaps before its process was there."""

    def feed(self, event: Event) -> None:
        """Let the machine hear *event* and do what it says."""
        before = (self.life.state, self.life.reason, self.life.epoch)
        for action in self.life.handle(event, now=monotonic_s()):
            match action:
                case Spawn(epoch):
                    self._incarnation = tasks.spawn(self._live(epoch), name=f"{self.name} epoch {epoch}")
                case Kill(reason):
                    log.warning("%s.killed epoch=%d reason=%s", self.name, self.life.epoch, reason)
                    self._doomed = self.life.epoch
                    if self.child is not None:
                        self.child.kill()
        if (self.life.state, self.life.reason, self.life.epoch) != before:
            self._tell(before[0])

    def send(self, message: Message) -> None:
        """Send *message* to the incarnation that runs, if one does."""
        if self.child is not None:
            self.child.send(message)

    async def stop(self, *, within_s: float) -> None:
        """End this child for good: politely when it is ready, else, or after *within_s*, by SIGKILL."""
        polite = self.life.state == "ready"
        self.feed(End())
        if self._incarnation is None or self._incarnation.done():
            return
        if polite and within_s > 0:
            self.send(Stop())
            await asyncio.wait((self._incarnation,), timeout=within_s)
        while not self._incarnation.done():
            if self.child is not None:
                self.child.kill()
            await asyncio.wait((self._incarnation,), timeout=0.05)

    async def _live(self, epoch: Epoch) -> None:
        self.drained.clear()
        try:
            self.child = await spawn(self._launch(epoch), lambda message: self._hear(epoch, message))
        except OSError as error:
            self._buried()
            self.feed(CouldNotStart(epoch, f"cannot be started: {error}"))
            self.feed(Exited(epoch, EXIT_FAILED))
            return
        self._changed()
        if self._doomed == epoch:
            self.child.kill()
        code = await self.child.exited
        self.child = None
        self._buried()
        wanted = self.life.state == "draining"
        log.log(
            logging.DEBUG if wanted else logging.INFO, "%s.exited epoch=%d code=%d", self.name, epoch, code
        )
        self.feed(Exited(epoch, code, retired=code == EXIT_RETIRED))

    def _hear(self, epoch: Epoch, message: Message) -> None:
        match message:
            case Stage(text):
                self.feed(Staged(epoch, text))
            case wire.Declared(setup_timeout_s, request_timeout_s):
                self.feed(Declared(epoch, setup_timeout_s, request_timeout_s))
            case Ready(grace_s=grace_s, app_name=app_name):
                self.grace_s, self.app_name = grace_s, app_name
                self.feed(BecameReady(epoch))
            case Failed(text, exit_code):
                self.exit_code = exit_code
                self.feed(CouldNotStart(epoch, text))
            case Drained():
                self.drained.set()
            case _:
                log.warning("%s.unexpected message=%r", self.name, message)

    def _tell(self, before: str) -> None:
        life = self.life
        if life.state != before:
            level = _LEVELS.get(life.state, logging.INFO)
            why = f" {life.reason}" if life.reason else ""
            log.log(level, "%s.%s epoch=%d%s", self.name, life.state, life.epoch, why)
        self._changed()
