"""
The router's tie to one incarnation of one runner: its connections, and the event stream that tells of its slots.

A slot is free when the host says so (`Released`), not when an answer has ended: then the hints after the request
are on the board, too. What the stream may have missed comes with the `Hello` of the next one, which lists the
slots in use. So the stream is opened anew, and the truth asked for that way, when for `RESYNC_S` nothing is heard
of a slot whose request has ended (its connection may have broken before the host had let it in), or of any slot
after the host has bounced a request although one looked free.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from falctl import wire
from falctl.clock import monotonic_s
from falctl.core.types import Epoch, RequestId, RunnerId
from falctl.lines import LineSplitter
from falctl.router.runners.dialogue import Dialogue
from falctl.router.runners.transport import Incoming, LostError, Outgoing, Transport, UnreachableError
from falctl.tasks import spawn

log = logging.getLogger(__name__)

RECONNECT_MIN_S: Final = 0.05
RECONNECT_MAX_S: Final = 1.0
RESYNC_S: Final = 2.0
CANCEL_TIMEOUT_S: Final = 5.0
_CANCEL_AGAIN_S: Final = 0.02
FAREWELL_S: Final = 5.0
"""How long what a dead runner has still sent may be read, before its connections are closed."""

_BOUNCED: Final = wire.H_BOUNCED.encode()

A = TypeVar("A")

Change: TypeAlias = wire.Hello | wire.Released | wire.LoadEnded | wire.HintsChanged | wire.Draining
"""What the scheduler is to know."""
News: TypeAlias = Change | wire.Printed | wire.Stepped


class Ears(Protocol):
    """Who is told what a link learns."""

    def hear(self, link: Link, message: News) -> None:
        """Take a message of the link's own epoch."""
        ...

    def lost(self, link: Link) -> None:
        """The stream has broken: nobody knows the slots of this runner until its next `Hello`."""
        ...

    def is_alive(self, link: Link) -> bool:
        """Return whether the runner's process still runs, by the supervisor's word; else the link gives up."""
        ...


class Link:
    """See the module."""

    def __init__(
        self,
        runner: RunnerId,
        epoch: Epoch,
        *,
        socket: Path,
        ears: Ears,
    ) -> None:
        self.runner = runner
        self.epoch = epoch
        self.transport = Transport(socket)
        self.up = False
        """Whether the stream stands, so that the slots we know of are true."""
        self.greeted = asyncio.Event()
        """Set by the first Hello."""
        self._ears = ears
        self._held: dict[RequestId, float | None] = {}
        """Requests that we sent and whose slot we have not heard of again; since when they are over, if they are."""
        self._strangers: set[str] = set()
        """Requests that hold a slot there and that we did not send: a router before us did."""
        self._doubt_at: float | None = None
        """Since when what we know of its slots is known to be wrong; None: it is not."""
        self._resync: asyncio.TimerHandle | None = None
        self._stream = spawn(self._listen(), name=f"stream-{runner}-{epoch}")

    async def deliver(self, request: RequestId, outgoing: Outgoing) -> Incoming | None:
        """
        Send a request; return the beginning of its answer, or None if the host did not let it in.

        Whoever gets an answer says when that has `ended`.

        Raises:
            LostError: the app may have been entered; it is not to be sent again as if it had not.
        """
        return await self._let_in(request, self.transport.send(outgoing))

    async def converse(
        self, request: RequestId, outgoing: Outgoing, subprotocols: Sequence[str]
    ) -> Dialogue | Incoming | None:
        """Do the same for a websocket; an `Incoming` is the answer by which it is refused. Raises LostError."""
        return await self._let_in(request, self.transport.converse(outgoing, subprotocols))

    async def _let_in(self, request: RequestId, sending: Awaitable[A]) -> A | None:
        self._held[request] = None
        try:
            answer = await sending
        except UnreachableError:
            self._bounced(request)
            return None
        except LostError:
            self.ended(request)
            raise
        if (
            isinstance(answer, Incoming)
            and answer.status == 503
            and any(name.lower() == _BOUNCED for name, _ in answer.headers)
        ):
            answer.close()
            self._bounced(request)
            return None
        return answer

    def _bounced(self, request: RequestId) -> None:
        self._held.pop(request, None)
        self._doubt_at = self._doubt_at or monotonic_s()
        self._watch()

    def ended(self, request: RequestId, *, within_s: float = 0.0) -> None:
        """An answer has ended, well or not; its slot should be given back any moment, after *within_s* at most."""
        if request in self._held:
            self._held[request] = monotonic_s() + within_s
            self._watch()

    def holds(self, request: RequestId) -> bool:
        """Return whether *request* was sent here and its slot has not been heard of again."""
        return request in self._held

    def may_hold(self, request: RequestId) -> bool:
        """Return whether *request* may be in one of its slots, as far as is known."""
        return not self.greeted.is_set() or request in self._held or request in self._strangers

    @property
    def requests(self) -> set[RequestId]:
        """Return the requests that are in its slots, or whose slots have not been heard of again."""
        return {*self._held, *map(RequestId, self._strangers)}

    async def cancel(self, request: RequestId) -> None:
        """
        Ask the host to stop a request, if it can.

        Asked for on another connection, it may come before the request itself: then it is asked for again.
        """
        pause_s = _CANCEL_AGAIN_S
        with contextlib.suppress(UnreachableError, LostError, TimeoutError):
            while await self._ask_to_cancel(request) != wire.ACCEPTED and request in self._held:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, CANCEL_TIMEOUT_S)

    async def _ask_to_cancel(self, request: RequestId) -> int:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            return await self.transport.post(wire.CANCEL_PATH + request)

    async def preview(self, request: RequestId) -> None:
        """Ask the host to make previews of a request that runs there, from now on."""
        with contextlib.suppress(UnreachableError, LostError):
            await self.transport.post(wire.PREVIEW_PATH + request)

    async def load(self, hint: str, evict: tuple[str, ...]) -> bool:
        """Ask the host for a load job; False when it does not take it. An unreachable one will be heard of anyway."""
        body = json.dumps({"hint": hint, "evict": evict}).encode()
        with contextlib.suppress(UnreachableError, LostError):
            return await self.transport.post(wire.LOAD_PATH, body) == wire.ACCEPTED
        return False

    async def order(self, order: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """
        Have the host do what *order* says of a model (`wire.MODELS_PATH`); return status and answer when it has.

        Raises UnreachableError, LostError.
        """
        status, answer = await self.transport.ask(wire.MODELS_PATH, json.dumps(order).encode())
        table: dict[str, Any] = json.loads(answer)
        return status, table

    def retire(self) -> None:
        """The runner's process is gone: stop listening, and close what is left of its connections after a while."""
        self.up = False
        self._stream.cancel()
        if self._resync is not None:
            self._resync.cancel()
        spawn(self._farewell(), name=f"farewell-{self.runner}-{self.epoch}")

    async def close(self) -> None:
        """Close everything now."""
        self._stream.cancel()
        await self.transport.close()

    async def _farewell(self) -> None:
        await asyncio.sleep(FAREWELL_S)
        await self.transport.close()

    async def _listen(self) -> None:
        pause_s = RECONNECT_MIN_S
        while True:
            with contextlib.suppress(UnreachableError, LostError):
                await self._read_stream()
            if self.up:
                pause_s = RECONNECT_MIN_S
                self.up = False
                self._ears.lost(self)
            if not self._ears.is_alive(self):
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    async def _read_stream(self) -> None:
        lines = LineSplitter()
        async with contextlib.aclosing(self.transport.events()) as chunks:
            async for chunk in chunks:
                for line in lines.feed(chunk):
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = wire.decode(line)
        except ValueError as error:
            log.warning("stream.nonsense runner=%d epoch=%d error=%s", self.runner, self.epoch, error)
            raise LostError(str(error)) from error
        if not isinstance(message, News) or message.epoch != self.epoch:
            return
        if isinstance(message, wire.Released):
            self._held.pop(RequestId(message.request), None)
            self._strangers.discard(message.request)
        if isinstance(message, wire.Hello | wire.Released):
            self._doubt_at = None
        if isinstance(message, wire.Hello):
            self.up = True
            self._strangers = set(message.executing) - self._held.keys()
            self.greeted.set()
            self._ears.hear(self, message)
            self._settle(set(message.executing))
        else:
            self._ears.hear(self, message)

    def _settle(self, executing: set[str]) -> None:
        """Release what is over for us and holds no slot either; the host has told, but we were not listening."""
        for request in [
            r for r, ended_at in self._held.items() if ended_at is not None and r not in executing
        ]:
            del self._held[request]
            self._ears.hear(self, wire.Released(self.epoch, request))

    def _watch(self) -> None:
        if self._resync is None:
            self._resync = asyncio.get_running_loop().call_later(RESYNC_S, self._look)

    def _look(self) -> None:
        self._resync = None
        ends = [ended_at for ended_at in self._held.values() if ended_at is not None]
        if self._doubt_at is not None:
            ends.append(self._doubt_at)
        if not ends:
            return
        if self.up and monotonic_s() - min(ends) >= RESYNC_S:
            log.info("stream.resync runner=%d epoch=%d", self.runner, self.epoch)
            self._stream.cancel()
            self.up = False
            self._ears.lost(self)
            self._stream = spawn(self._listen(), name=f"stream-{self.runner}-{self.epoch}")
        self._watch()
