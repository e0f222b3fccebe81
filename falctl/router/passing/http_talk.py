"""
HTTP over a websocket, as fal has it at ``wss://ws.fal.run``: ``/ws/{owner}/{alias}/{path}``.

Each message of the client is the JSON body of a POST; its answer is a message ``{"type": "start", "request_id", "status",
"headers"}``, then what the app sends, as text if its type is, and ``{"type": "end", "request_id", …}``. One request at a
time, each through the queue; an error is an answer, too. The websocket itself holds no slot.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from typing import Any, Final

from starlette.types import Message

from falctl.clock import monotonic_s
from falctl.errors import BadRequestError, ClientGoneError, RequestError
from falctl.router.dispatch.apps import Apps
from falctl.router.edge.answers import ORIGIN, REQUEST_ID, RawHeaders
from falctl.router.edge.call import Call
from falctl.router.edge.client_socket import ClientSocket, Closed, GoneError, Piece
from falctl.router.edge.connection import Connection
from falctl.router.edge.offer import offered_subprotocols
from falctl.router.fal.address import read_address
from falctl.router.passing.inner import InnerRequest
from falctl.router.passing.proxy import Proxy
from falctl.router.passing.reach import Target
from falctl.tasks import spawn

_OF_THE_HANDSHAKE: Final = (b"sec-websocket-", b"upgrade", b"connection")
_BROKEN: Final = Closed(1011, "the app's answer broke off")


class HttpTalk:
    """The room for ``/ws``."""

    def __init__(self, apps: Apps, proxy: Proxy) -> None:
        self._apps = apps
        self._proxy = proxy

    async def serve(self, call: Call) -> None:
        """
        Answer requests until the client leaves.

        Raises:
            RequestError: there will be no websocket, and nothing has been sent.
        """
        if not call.wants_websocket:
            msg = "/ws is HTTP over a websocket; for HTTP alone there is /run"
            raise BadRequestError(msg)
        offered_subprotocols(call)
        address = read_address(call.scope["raw_path"])
        target = Target(self._apps.find(address.alias), address.path)
        assert isinstance(call.connection, Connection), "only a client's own request asks for a websocket"
        client, early = call.connection.upgrade()
        call.started = True
        given = call.scope["headers"]
        call.scope["headers"] = [field for field in given if not field[0].startswith(_OF_THE_HANDSHAKE)]
        try:
            await client.accept(None, [(ORIGIN, b"router"), (REQUEST_ID, call.request.encode())], early=early)
            closed = await self._answer_all(call, client, target)
        except GoneError:
            closed = Closed(1000)
        await client.end(closed)

    async def _answer_all(self, call: Call, client: ClientSocket, target: Target) -> Closed:
        """Return how it ends. The next message is read while one is answered: the client may leave."""
        reading = spawn(client.next(), name="ws.read")
        try:
            while not isinstance(piece := await reading, Closed):
                reading = spawn(client.next(), name="ws.read")
                request = _PassedOn(call, target.path, piece, client)
                serving = spawn(request.serve(self._proxy, target), name="ws.serve")
                await asyncio.wait({reading, serving}, return_when=asyncio.FIRST_COMPLETED)
                if not serving.done() and isinstance(reading.result(), Closed):
                    request.leave()
                if await serving:
                    return _BROKEN
        finally:
            reading.cancel()
        return piece


class _PassedOn(InnerRequest):
    """One request, its answer passed on as it comes."""

    def __init__(self, outer: Call, path: bytes, piece: Piece, client: ClientSocket) -> None:
        body = piece.encode() if isinstance(piece, str) else piece
        super().__init__(outer, path, body=body, headers=[])
        self._client = client
        self._text: codecs.IncrementalDecoder | None = None
        self._first_at: float | None = None

    async def serve(self, proxy: Proxy, target: Target) -> bool:
        """Answer it from the app; return whether the answer broke."""
        try:
            await proxy.serve(self.call, target)
        except ClientGoneError:
            return False
        except RequestError as error:
            await self.call.refuse(error)
        finally:
            self._sender.on_gone = None
        if not self._sender.broken:
            waited_s = (self._first_at or monotonic_s()) - self.call.started_at
            await self._tell("end", status=self._status, time_to_first_byte_seconds=waited_s)
        return self._sender.broken

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            await self._begin(message["headers"])
            return
        chunk: bytes = message["body"]
        if chunk:
            self._first_at = self._first_at or monotonic_s()
            await self._put(chunk if self._text is None else self._text.decode(chunk))

    async def _begin(self, headers: RawHeaders) -> None:
        table = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        kind = table.get("content-type", "")
        if "content-encoding" not in table and ("json" in kind or kind.startswith("text/")):
            self._text = codecs.getincrementaldecoder("utf-8")(
                "replace"
            )  # a chunk may end inside a character
        await self._tell("start", status=self._status, headers=table)

    async def _tell(self, kind: str, **more: Any) -> None:
        await self._put(json.dumps({"type": kind, "request_id": self.call.request, **more}))

    async def _put(self, piece: Piece) -> None:
        if not piece:
            return
        try:
            await self._client.put(piece)
        except GoneError:
            self.leave()
