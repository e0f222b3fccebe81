"""Direct calls: ``/run/{owner}/{alias}/{path}``, and with one app every path that is none of ours."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

from falctl.router.dispatch.apps import Apps
from falctl.router.edge.call import Call
from falctl.router.fal.address import read_address
from falctl.router.passing.names import Names
from falctl.router.passing.proxy import Proxy
from falctl.router.passing.reach import Target
from falctl.router.passing.websockets import WebSockets

_SAME_EVERYWHERE: Final = frozenset({b"/openapi.json", b"/docs"})


class Direct:
    """Two rooms."""

    def __init__(self, apps: Apps, proxy: Proxy, websockets: WebSockets, names: Names) -> None:
        self._apps = apps
        self._proxy = proxy
        self._websockets = websockets
        self._names = names

    async def serve_bare(self, call: Call) -> None:
        """
        Answer a call whose path is one of the app's.

        Raises:
            RequestError: it was not answered, and nothing has been sent.
        """
        await self._serve(call, Target(self._apps.bare(), call.scope["raw_path"]))

    async def serve_run(self, call: Call) -> None:
        """
        Answer a call under ``/run``: the app sees the path behind the alias.

        Raises:
            RequestError: it was not answered, and nothing has been sent.
        """
        address = read_address(call.scope["raw_path"])
        await self._serve(call, Target(self._apps.find(address.alias), address.path))

    async def _serve(self, call: Call, target: Target) -> None:
        async with self._names.chosen(call):
            reads = call.scope["method"] in {"GET", "HEAD"}
            if call.wants_websocket:
                await self._websockets.serve(call, target)
            elif reads and unquote_to_bytes(target.path) in _SAME_EVERYWHERE:
                await self._proxy.serve_directly(call, target)
            else:
                await self._proxy.serve(call, target)
