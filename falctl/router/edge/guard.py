"""Who may ask for what: Host, origin, API key, tokens, checked before anything else happens."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from falctl.apikeys import matches
from falctl.config import ServerConfig
from falctl.errors import UnauthorizedError, WrongHostError
from falctl.router.edge.call import Call
from falctl.router.edge.cors import Cors
from falctl.router.fal.address import read_address
from falctl.router.fal.tokens import PARAMETER, Tokens

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::[0-9]{0,5})?")
_HOSTS_KEPT_MAX: Final = 256
_OPENED_BY_TOKENS: Final = ("/run/", "/ws/")
KEYS_PATH: Final = "/fal/rest/.well-known/jwks.json"
"""Where receivers of webhooks fetch the public key: they are no clients, and have no API key."""
_OPEN: Final = frozenset({"/health", KEYS_PATH})
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Contract 6 for one configuration; a reload makes a new one."""

    def __init__(
        self,
        server: ServerConfig,
        *,
        admin_token: str,
        tokens: Tokens,
        passes: Callable[[Call], bool] = lambda _: False,
    ) -> None:
        """*passes* tells of what comes without an API key whether something else lets it in."""
        self._cors = Cors(server.allow_origins)
        self._names = frozenset(_bare(name) for name in (*server.hosts, server.host))
        self._api_keys = server.api_keys
        assert admin_token, "an empty token would be everybody's"
        self._admin_token = admin_token.encode()
        self._tokens = tokens
        self._passes = passes
        self._hosts_known: set[bytes] = set()

    @property
    def asks_for_keys(self) -> bool:
        """Return whether clients authenticate to us, so that their credentials are not the app's business."""
        return bool(self._api_keys)

    async def admit(self, call: Call) -> bool:
        """
        Return whether *call* may go on; False: it was a preflight, and has been answered.

        Raises:
            WrongHostError, ForbiddenError, UnauthorizedError: it may not.
        """
        self._check_host(call)
        call.cors = self._cors.check(call.head)
        if self._cors.is_preflight(call.scope["method"], call.head):
            await call.answer(204, self._cors.permissions(call.head), b"")
            return False
        self._check_credentials(call)
        return True

    def _check_host(self, call: Call) -> None:
        host = call.head.get(b"host", b"")
        if host not in self._hosts_known:
            if not self._is_ours(host.decode("latin-1")):
                raise _wrong_host(host.decode("latin-1"))
            if len(self._hosts_known) < _HOSTS_KEPT_MAX:
                self._hosts_known.add(host)
        if any(name == b"host" and value != host for name, value in call.scope["headers"]):
            several = ", ".join(v.decode("latin-1") for n, v in call.scope["headers"] if n == b"host")
            raise _wrong_host(several)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower()
        return name == "localhost" or _bare(name) in self._names or _is_loopback(name)

    def _check_credentials(self, call: Call) -> None:
        path: str = call.scope["path"]
        ours = path == "/falctl" or path.startswith("/falctl/")
        if ours and self._is_admin(call.head):
            return
        if ours and call.scope["method"] not in _SAFE_METHODS:
            msg = "this needs the admin token from falctl's state directory: Authorization: Bearer <token>"
            raise UnauthorizedError(msg)
        if path.startswith(_OPENED_BY_TOKENS) and self._has_token(call):
            return
        if self._api_keys and path not in _OPEN and not self._has_key(call.head) and not self._passes(call):
            msg = "this falctl asks for an API key: Authorization: Key <key>"
            raise UnauthorizedError(msg)

    def _has_token(self, call: Call) -> bool:
        """Return whether *call* has a token, which is good; it goes no further. Raises UnauthorizedError: it is not."""
        parts = call.scope["query_string"].split(b"&")
        found = [part.removeprefix(PARAMETER) for part in parts if part.startswith(PARAMETER)]
        if not found:
            return False
        self._tokens.check(found[0].decode("latin-1"), read_address(call.scope["raw_path"]))
        call.scope["query_string"] = b"&".join(part for part in parts if not part.startswith(PARAMETER))
        return True

    def _is_admin(self, head: Mapping[bytes, bytes]) -> bool:
        presented = head.get(b"x-falctl-token") or _credential(head, schemes={b"bearer"})
        return hmac.compare_digest(presented, self._admin_token)

    def _has_key(self, head: Mapping[bytes, bytes]) -> bool:
        credential = _credential(head, schemes={b"key", b"bearer"})
        return matches(credential.decode("latin-1"), self._api_keys)


def _credential(head: Mapping[bytes, bytes], *, schemes: set[bytes]) -> bytes:
    """Return what an Authorization header of one of *schemes* presents, else nothing."""
    scheme, _, credential = head.get(b"authorization", b"").partition(b" ")
    return credential.strip() if scheme.lower() in schemes else b""


def _bare(name: str) -> str:
    """Return *name* in lower case, without the brackets that an IPv6 address has in a Host header."""
    return name.lower().removeprefix("[").removesuffix("]")


def _is_loopback(name: str) -> bool:
    try:
        if name.startswith("["):
            return IPv6Address(name[1:-1]).is_loopback
        return IPv4Address(name).is_loopback
    except AddressValueError:
        return False


def _wrong_host(host: str) -> WrongHostError:
    match = _HOST.fullmatch(host)
    # JSON's quoting is TOML's, too.
    fix = (
        f"to allow it: [server] hosts = [{json.dumps(_bare(match[1]))}]"
        if match
        else "server.hosts lists the allowed ones"
    )
    return WrongHostError(f'Host "{host}" is not a name of this falctl; {fix}')
