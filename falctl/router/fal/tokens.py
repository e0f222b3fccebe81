"""
Tokens by which fal's clients open an app for a while: a browser cannot put an API key into the headers of a websocket.

``POST /fal/rest/tokens/`` makes one, for whoever may call us at all. It stands in ``?fal_jwt_token=`` under ``/run`` and
counts there like an API key, for the apps that it names and until it expires. It is a JWT (HS256) whose secret is this
installation's own, so that a token outlives a restart.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any, Final

import jwt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from falctl.clock import wall_s
from falctl.errors import BadRequestError, StartError, UnauthorizedError
from falctl.private_file import write_private
from falctl.router.edge.body import Intake
from falctl.router.edge.call import Call
from falctl.router.fal.address import Address

PARAMETER: Final = b"fal_jwt_token="
EXPIRATION_MAX_S: Final = 86400
_ALGORITHM: Final = "HS256"
_SECRET_BYTES: Final = 32
_HOW: Final = "POST /fal/rest/tokens/ gives another"


class _Wish(BaseModel):
    """What a client asks for."""

    model_config = ConfigDict(strict=True)

    allowed_apps: list[str] = Field(min_length=1, max_length=1000)
    token_expiration: int = Field(default=120, ge=1, le=EXPIRATION_MAX_S)


class Tokens:
    """Makes and checks tokens."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) >= _SECRET_BYTES, "too short to be a secret"
        self._secret = secret

    def issue(self, apps: list[str], *, for_s: int) -> str:
        """Return a token for *apps*, each ``alias`` or ``owner/alias``, that is good for *for_s* seconds."""
        claims = {"allowed_apps": apps, "exp": int(wall_s()) + for_s}
        return jwt.encode(claims, self._secret, _ALGORITHM)

    def check(self, token: str, address: Address) -> None:
        """
        Return if *token* opens *address*.

        Raises:
            UnauthorizedError: it does not; says why.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._secret, algorithms=[_ALGORITHM], options={"require": ["exp"]}
            )
        except jwt.ExpiredSignatureError:
            msg = f"this fal_jwt_token has expired; {_HOW}"
            raise UnauthorizedError(msg) from None
        except jwt.InvalidTokenError:
            msg = f"this fal_jwt_token is not one of this falctl; {_HOW}"
            raise UnauthorizedError(msg) from None
        apps = claims.get("allowed_apps", [])
        if address.alias not in apps and address.app not in apps:
            msg = f"this fal_jwt_token is for {', '.join(apps)}, not for {address.alias}; {_HOW}"
            raise UnauthorizedError(msg)


class TokenRoom:
    """Answers ``POST /fal/rest/tokens/``."""

    def __init__(self, tokens: Tokens, intake: Intake) -> None:
        self._tokens = tokens
        self._intake = intake

    async def serve(self, call: Call) -> None:
        """
        Answer *call* with a token, as a JSON string.

        Raises:
            BadRequestError: it asks for none, or for what cannot be; names the field.
        """
        if call.scope["method"] != "POST":
            msg = 'a token is asked for by POST: {"allowed_apps": ["my-app"], "token_expiration": 120}'
            raise BadRequestError(msg)
        try:
            wish = _Wish.model_validate_json(await self._intake.read(call))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the body"
            msg = f"{field}: {first['msg']}; a token is asked for as {{'allowed_apps': ['my-app'], 'token_expiration': 120}}"
            raise BadRequestError(msg) from None
        finally:
            self._intake.release(call)
        token = self._tokens.issue(wish.allowed_apps, for_s=wish.token_expiration)
        await call.answer_json(200, token, [(b"cache-control", b"no-store")])


def read_secret(path: Path) -> bytes:
    """
    Return the secret of this installation, made if there is none.

    Raises:
        StartError: it cannot be read or written; one line.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            found = path.read_bytes()
            if len(found) >= _SECRET_BYTES:
                return found
        made = secrets.token_bytes(_SECRET_BYTES)
        write_private(path, made)
    except OSError as error:
        msg = f"cannot keep the secret of tokens in {path} ({error.strerror}); make room, or delete it"
        raise StartError(msg) from error
    return made
