"""
A falctl with a fal.App, and fal's own Python client pointed at it: what every test with that client starts from.

    with calling() as c:
        assert c.fal.run(c.app, {"prompt": "seven"})["prompt"] == "seven"

In this process the client is pointed by `falctl.redirect.sitecustomize.redirect`, which is what `falctl exec` does
to a script; `Calling.run_script` runs one through `falctl exec` itself.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import fal_client
import fal_client.client
import httpx

from falctl.redirect import sitecustomize
from tests.process.harness import Falctl

T = TypeVar("T")

HERE: Final = Path(__file__).parent
CLIENT_APP: Final = f"{HERE / 'client_app.py'}::ClientApp"
DOCS_APP: Final = f"{HERE / 'pages' / 'optimizing_routing_behavior.py'}::AnyModelRunner"
"""The example of fal's page; it wants DOCS_APP_DEVICE, which `calling` sets to cpu."""

OWNER: Final = "me"
KEY: Final = "local:local"
WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Calling:
    """A falctl that runs, and fal's client for it."""

    falctl: Falctl
    app: str
    """As clients name it: ``owner/alias``."""
    key: str
    fal: fal_client.SyncClient

    def run_async(self, work: Callable[[fal_client.AsyncClient], Awaitable[T]]) -> T:
        """Return what *work* makes with fal's asynchronous client, on a loop of its own."""

        async def main() -> T:
            client = fal_client.AsyncClient(key=self.key)
            try:
                return await asyncio.wait_for(work(client), WITHIN_S)
            finally:
                await (await client._client).aclose()

        return asyncio.run(main())

    def http(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request of the test's own, with the key."""
        headers = {"authorization": f"Key {self.key}", **options.pop("headers", {})}
        url = f"{self.falctl.url}{path}"
        return httpx.request(method, url, headers=headers, timeout=WITHIN_S, trust_env=False, **options)

    def run_script(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run *text* as an unmodified script through `falctl exec`."""
        return self.falctl.run("exec", "--", sys.executable, "-c", text, *arguments)


@contextmanager
def calling(
    app: str = CLIENT_APP,
    *,
    alias: str = "client-app",
    config: str = "",
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = ("--runners", "1"),
    key: str = KEY,
) -> Iterator[Calling]:
    """Run `falctl up` with *app*, and point fal's client of this process at it until the block ends."""
    given = {"DOCS_APP_DEVICE": "cpu", **(env or {})}
    client = fal_client.SyncClient(key=key)
    with Falctl(app, config=config, env=given, args=args) as falctl, pointed_at(falctl.url):
        yield Calling(falctl, f"{OWNER}/{alias}", key, client)
    client._client.close()


def collect_what_clients_left_open() -> None:
    """Each upload opens connections of its own, which fal's client leaves to the collector: a warning, thus an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextmanager
def pointed_at(url: str) -> Iterator[None]:
    """Let fal's client of this process call *url* until the block ends."""
    names = vars(fal_client.client)
    before = {name: names[name] for name in sitecustomize.addresses(url)}
    sitecustomize.redirect(fal_client.client, url)
    try:
        yield
    finally:
        names.update(before)
