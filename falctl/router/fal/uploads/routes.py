"""
fal's storage as its clients call it: a token or an address to send to, the file in one piece or in many.

    POST /fal/rest/storage/auth/token                        Python: a token for what follows
    POST /fal/cdn/files/upload                               the file
    POST /fal/cdn/files/upload/multipart                     one in parts, to PUT under its URL:
    PUT  /files/{name}/multipart/{pass}/{number}             and POST .../complete
    POST /fal/rest/storage/upload/initiate[-multipart]       JavaScript: an address for what follows
    PUT  /fal/cdn/put/{name}[/{number}]?pass=                and POST .../complete

Who may send is told by a pass (`falctl.router.fal.uploads.passes`): the token is one for any new file, an address bears one
for its file. JavaScript sends no key with a file, so where keys are asked for a pass stands in for one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from falctl.errors import BadRequestError, NotFoundError, UploadRefusedError
from falctl.router.edge.answers import RawHeaders
from falctl.router.edge.body import Intake
from falctl.router.edge.call import Call
from falctl.router.edge.edge import Room
from falctl.router.fal.uploads.passes import GOOD_FOR_S, Passes, end_of
from falctl.router.fal.uploads.store import PARTS_MAX, UploadStore
from falctl.router.own.files import is_name, new_name
from falctl.router.passing.lifetime import mark_of, wanted_lifetime

_ANY_FILE: Final = "any new file"
"""What the pass of a token is for."""
_SWEEP_EVERY_S: Final = 60.0
_UPLOAD: Final = "/fal/cdn/files/upload"
_FILES: Final = "/files/"
_PUT: Final = "/fal/cdn/put/"
_TYPE: Final = "application/octet-stream"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class _Target:
    """What is sent to: a file, by the bearer of a pass."""

    name: str
    given: str
    what: str
    """The number of a part, "complete", or "" for the file as a whole."""


class Uploads:
    """The room for all of the above. *files_url* is where stored files are found."""

    def __init__(self, store: UploadStore, passes: Passes, intake: Intake, *, files_url: str) -> None:
        self.store = store
        self._passes = passes
        self._intake = intake
        self._files_url = files_url

    def admits(self, call: Call) -> bool:
        """
        Return whether *call* may be made without an API key: a pass for it comes with it.

        The name of a stored file is one, for reading it: fal's clients, apps and web pages read files by URL alone.
        """
        path: str = call.scope["path"]
        if call.scope["method"] in {"GET", "HEAD"}:
            return path.startswith(_FILES) and is_name(path.removeprefix(_FILES))
        if path.startswith(_UPLOAD):
            token = call.head.get(b"authorization", b"").partition(b" ")[2].decode("latin-1")
            return self._passes.holds(token, _ANY_FILE)
        target = _target(call)
        return target is not None and self._passes.holds(target.given, target.name)

    async def serve(self, call: Call) -> None:
        """
        Answer *call*.

        Raises:
            RequestError: it is refused, and nothing has been sent.
        """
        method, path = call.scope["method"], call.scope["path"]
        match method, path:
            case "POST", "/fal/rest/storage/auth/token":
                await self._give_token(call)
            case "POST", "/fal/rest/storage/upload/initiate" | "/fal/rest/storage/upload/initiate-multipart":
                await self._give_address(call)
            case "POST", "/fal/cdn/files/upload":
                await self._take_file(call)
            case "POST", "/fal/cdn/files/upload/multipart":
                await self._begin(call)
            case _:
                await self._serve_target(call)

    def beside(self, files: Room) -> Room:
        """Return the room for ``/files``, where parts are sent; the rest is left to *files*."""

        async def serve(call: Call) -> None:
            await (files if _target(call) is None else self.serve)(call)

        return serve

    async def _serve_target(self, call: Call) -> None:
        method, target = call.scope["method"], _target(call)
        if target is None:
            msg = f"nothing at {method} {call.scope['path']}; of fal's storage there are tokens, upload and multipart"
            raise NotFoundError(msg)
        if not self._passes.holds(target.given, target.name):
            minutes = GOOD_FOR_S // 60
            msg = f"this address was not given to you, or not within the last {minutes} minutes; begin the upload anew"
            raise UploadRefusedError(msg)
        if (method, target.what) == ("POST", "complete"):
            await self._complete(call, target.name)
        elif method == "PUT" and not target.what:
            await self.store.receive(target.name, self._intake.stream(call))
            await call.answer_json(200, {"file_url": self._url(target.name)})
        elif method == "PUT" and _NUMBER.fullmatch(target.what) and int(target.what) <= PARTS_MAX:
            await self._take_part(call, target.name, int(target.what))
        else:
            msg = f"parts are PUT under numbers from 1 to {PARTS_MAX}, and then POST .../complete"
            raise BadRequestError(msg)

    # --- calls -------------------------------------------------------------------------------------

    async def _give_token(self, call: Call) -> None:
        await self._read_json(call)
        token = self._passes.make(_ANY_FILE)
        answer = {
            "token": token,
            "token_type": "Bearer",
            "base_url": f"{_base(call)}/fal/cdn",
            "expires_at": end_of(token).isoformat(),
        }
        await call.answer_json(200, answer)

    async def _give_address(self, call: Call) -> None:
        asked = await self._read_json(call)
        mark = mark_of(wanted_lifetime(call.head))
        name = new_name(
            _text(asked, "file_name", "upload.bin"), _text(asked, "content_type", _TYPE), mark=mark
        )
        address = f"{_base(call)}{_PUT}{name}?pass={self._passes.make(name)}"
        await call.answer_json(200, {"upload_url": address, "file_url": self._url(name)})

    async def _take_file(self, call: Call) -> None:
        name = self._name(call)
        await self.store.receive(name, self._intake.stream(call))
        await call.answer_json(200, {"access_url": self._url(name)})

    async def _begin(self, call: Call) -> None:
        async for _ in self._intake.stream(call):
            pass  # it is empty
        name = self._name(call)
        await call.answer_json(200, {"access_url": self._url(name), "uploadId": self._passes.make(name)})

    async def _take_part(self, call: Call, name: str, number: int) -> None:
        etag = await self.store.receive_part(name, number, self._intake.stream(call))
        header: RawHeaders = [(b"etag", f'"{etag}"'.encode())]
        await call.answer_json(200, {"partNumber": number, "etag": f'"{etag}"'}, header)

    async def _complete(self, call: Call, name: str) -> None:
        asked = await self._read_json(call)
        await self.store.join(name, _parts(asked))
        await call.answer_json(200, {"access_url": self._url(name), "file_url": self._url(name)})

    async def sweep_for_ever(self) -> None:
        """Delete uploads that nobody can go on with any more."""
        await self.store.sweep_for_ever(older_than_s=GOOD_FOR_S, every_s=_SWEEP_EVERY_S)

    # --- parts -------------------------------------------------------------------------------------

    async def _read_json(self, call: Call) -> dict[str, Any]:
        """Return the object that the body is; nothing is an empty one."""
        try:
            body = await self._intake.read(call)
        finally:
            self._intake.release(call)
        try:
            table = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            msg = "the body is no JSON object"
            raise BadRequestError(msg)
        return table

    def _name(self, call: Call) -> str:
        file_name = call.head.get(b"x-fal-file-name", b"").decode("latin-1")
        mark = mark_of(wanted_lifetime(call.head))
        return new_name(file_name, call.head.get(b"content-type", b"").decode("latin-1"), mark=mark)

    def _url(self, name: str) -> str:
        return f"{self._files_url}/{name}"


def _target(call: Call) -> _Target | None:
    path: str = call.scope["path"]
    match path.split("/")[1:]:
        case ["fal", "cdn", "put", name, *what] if len(what) < 2:
            given = parse_qs(call.scope["query_string"].decode("latin-1")).get("pass", [""])[0]
        case ["files", name, "multipart", given, *what] if len(what) == 1:
            pass
        case _:
            return None
    return _Target(name, given, "".join(what)) if is_name(name) else None


def _base(call: Call) -> str:
    return f"{call.scope['scheme']}://{call.head.get(b'host', b'').decode('latin-1')}"


def _text(table: dict[str, Any], key: str, default: str) -> str:
    value = table.get(key) or default
    if not isinstance(value, str):
        msg = f"{key} is no text"
        raise BadRequestError(msg)
    return value


def _parts(table: dict[str, Any]) -> list[tuple[int, str]]:
    match table.get("parts"):
        case [_, *_] as parts if all(
            isinstance(part, dict)
            and isinstance(part.get("partNumber"), int)
            and 1 <= part["partNumber"] <= PARTS_MAX
            and isinstance(part.get("etag"), str)
            for part in parts
        ):
            return [(part["partNumber"], part["etag"]) for part in parts]
        case _:
            msg = 'parts must be a list such as [{"partNumber": 1, "etag": "..."}], of all that were sent'
            raise BadRequestError(msg)
