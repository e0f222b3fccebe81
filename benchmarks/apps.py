"""Apps for benchmarks: as little work as an app can do."""

from __future__ import annotations

from falctl import App, endpoint


class Trivial(App):
    """Answers at once, from the event loop, many requests at a time: what is measured is everything around it."""

    max_multiplexing = 256

    @endpoint("/")
    async def answer(self, body: dict[str, str]) -> dict[str, str]:
        """Return *body*."""
        return body
