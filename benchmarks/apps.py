"""Apps for benchmarks: as little work as an app can do."""

from __future__ import annotations

import asyncio

from falctl import App, endpoint
from falctl.clock import monotonic_s


class Trivial(App):
    """Answers at once, from the event loop, many requests at a time: what is measured is everything around it."""

    max_multiplexing = 256

    @endpoint("/")
    async def answer(self, body: dict[str, str]) -> dict[str, str]:
        """Return *body*."""
        return body


class Clocked(App):
    """Says when it was entered, one request at a time."""

    @endpoint("/")
    async def begin(self, body: dict[str, str]) -> dict[str, float]:
        """Return the instant, by the clock that all processes of the machine share."""
        return {"began_at": monotonic_s()}

    @endpoint("/hold")
    async def hold(self, body: dict[str, str]) -> None:
        """Keep the slot until the request is cancelled."""
        await asyncio.get_running_loop().create_future()
