"""
The TLS of the second port: a context with our certificate, which is renewed while it is in use.

A port of its own, because uvloop's TLS takes a socket from its first byte: http:// stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Final

from falctl.clock import wall_clock
from falctl.config import ServerConfig
from falctl.errors import StartError
from falctl.home import Home
from falctl.router.edge.certificates import Certificates

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 3600.0
_ANY: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what is listened on, no name


class Tls:
    """The context, and what it needs to stay good."""

    def __init__(self, home: Home, server: ServerConfig) -> None:
        """
        Make the certificates that are not there. Blocks.

        Raises:
            StartError: they cannot be written.
        """
        self._home = home
        self._certificates = self._of(server)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.set_alpn_protocols(["http/1.1"])
        try:
            self._certificates.refresh(now=wall_clock())
            self.context.load_cert_chain(*self._certificates.chain)
        except OSError as error:
            msg = f"server.tls: no certificate can be made in {home.tls} ({error.strerror or error}); make room there"
            raise StartError(msg) from error

    async def renew_for_ever(self) -> None:
        """Take a new certificate before the old one ends; connections that stand keep theirs."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._renew()

    async def rename(self, server: ServerConfig) -> None:
        """Be good for the names of *server*."""
        self._certificates = self._of(server)
        await self._renew()

    async def _renew(self) -> None:
        try:
            if await asyncio.to_thread(self._certificates.refresh, now=wall_clock()):
                self.context.load_cert_chain(*self._certificates.chain)
        except OSError as error:
            log.warning("certificate.not_renewed error=%s", error)

    def _of(self, server: ServerConfig) -> Certificates:
        names = [name for name in (server.host, *server.hosts) if name not in _ANY]
        return Certificates(self._home.tls, bundle=self._home.tls_bundle, names=names)
