"""aiohttp as we use it: each default that would break us is another here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from falctl.router.runners import transport
from falctl.router.runners.transport import NO_TIMEOUT, Transport


def test_no_timeout_of_any_kind_is_in_use() -> None:
    async def look() -> aiohttp.ClientTimeout:
        made = Transport(Path("/nowhere"))
        try:
            return made._session.timeout
        finally:
            await made.close()

    timeout = asyncio.run(look())
    assert timeout is NO_TIMEOUT
    assert [timeout.total, timeout.connect, timeout.sock_read, timeout.sock_connect] == [None] * 4
    assert aiohttp.client.DEFAULT_TIMEOUT.total == 300, "what would cut a job of ten minutes"


def test_connections_are_unlimited_and_dropped_before_the_host_drops_them() -> None:
    async def look() -> tuple[int, float | None]:
        made = Transport(Path("/nowhere"))
        try:
            connector = made._session.connector
            assert isinstance(connector, aiohttp.UnixConnector)
            return connector.limit, connector._keepalive_timeout
        finally:
            await made.close()

    limit, keep_s = asyncio.run(look())
    assert limit == 0
    assert keep_s is not None
    assert keep_s == transport.POOL_KEEP_S < 3600
