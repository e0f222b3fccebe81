"""
Any history of several requests over one device, step by step: nobody waits for ever, no budget is exceeded.

Each request has a thread, and one of them is let go on at a time: until it is done with its step, or stands in the line.
The order is the dice's and not the machine's, so a seed is one history.
"""

from __future__ import annotations

import random
from concurrent.futures import Future
from typing import Any

import pytest

from falctl.core.activations import Drawing
from falctl.core.turns import verdict
from falctl.errors import FilesChangedError, ModelTooLargeError
from falctl.toolkit import RequestCancelled
from falctl.toolkit.cache_hooks import CachePolicy
from tests.toolkit.counted_store import OutOfMemoryError, assert_all_can_go
from tests.toolkit.test_cache_turns import SIZES, WAIT_S, Slots, slots
from tests.wait import until

REQUESTS = ("one", "two", "three", "four")
NAMES = tuple(SIZES)
DEEDS = ("lease",) * 5 + ("end",) * 4 + ("evict", "pin", "fail", "cancel", "replace", "run")
TOLD = (ModelTooLargeError, RequestCancelled, OutOfMemoryError, OSError, FilesChangedError)
HOST = 95


class History:
    """What is asked of one cache, and by whom."""

    def __init__(self, made: Slots, dice: random.Random) -> None:
        self.made, self.dice = made, dice
        self.store, self.cache = made.store, made.cache
        self.store.host_bytes = HOST
        self.asking: dict[str, Future[Any]] = {}

    def step(self) -> None:
        request = self.dice.choice(REQUESTS)
        waits = request in self.asking
        deed = self.dice.choice(DEEDS)
        if waits and deed == "cancel":
            self.made.stops[request].set()
        elif waits or deed == "cancel":
            return
        elif deed == "end":
            self.made.end(request)
        else:
            getattr(self, deed)(request, self.dice.choice(NAMES))
        self.settle()
        self.check()

    def settle(self) -> None:
        """Return when everybody who asks was served or told, or stands in the line and will go on doing so."""
        turns, holdings = self.cache._loader._turns, self.cache._holdings

        def still() -> bool:
            for request, one in tuple(self.asking.items()):
                if one.done():
                    del self.asking[request]
                    if (error := one.exception()) is not None:
                        assert isinstance(error, TOLD), error
                        self.made.stops.pop(request, None)
            if any(self.made.stops[one].is_set() for one in self.asking if one in self.made.stops):
                return False
            with holdings.lock:
                line = tuple(turns._line.values())
                uses, supply = holdings.uses(), holdings.supply()
                found = [verdict(use, line[:i], uses, supply) for i, use in enumerate(line)]
            return len(line) == len(self.asking) and set(found) <= {"wait"}

        until(still, within_s=WAIT_S, what=f"{list(self.asking)} are served, told or in the line")

    def check(self) -> None:
        assert self.store.used_bytes <= self.store.total_bytes
        assert self.store.used_host_bytes <= HOST
        leases = sum(len(held) for held in self.made.leases.values())
        until(
            lambda: sum(r.leases for r in self.cache.residents()) == leases,
            within_s=WAIT_S,
            what="counts and leases agree",
        )

    def lease(self, request: str, name: str) -> None:
        self.asking[request] = self.made.begin(request, name, self.dice.randrange(70))

    def run(self, request: str, name: str) -> None:
        drawing = self.dice.randrange(60)

        def run() -> None:
            self.made.here.request = request
            self.cache.run(name, lambda model: model.draw(drawing), Drawing(drawing, 1))

        self.asking[request] = self.made.on(request, run)

    def fail(self, request: str, name: str) -> None:
        move = self.dice.choice(("construct", "fill", "place"))
        self.store.broken[f"{move} {name}"] = OSError() if move == "fill" else OutOfMemoryError()
        self.lease(request, name)

    def replace(self, request: str, name: str) -> None:
        self.store.models = {**self.store.models, name: dict(self.store.models[name])}
        self.store.broken[f"fill {name}"] = FilesChangedError("replaced")
        self.lease(request, name)

    def evict(self, _request: str, name: str) -> None:
        self.cache.evict(name, self.dice.choice(("vram", "ram", "disk")))

    def pin(self, _request: str, name: str) -> None:
        if not self.cache.unpin(name) and not self.cache.pinned:
            self.cache.pin(name)


@pytest.mark.parametrize("seed", range(5))
def test_in_any_history_everybody_is_served_or_told_and_nothing_stays_held(seed: int) -> None:
    with slots(keep_alive_s=CachePolicy().keep_alive_s) as made:
        history = History(made, random.Random(seed))
        for _ in range(60):
            history.step()
        for _ in REQUESTS * 2:  # who waits is served when the others end, and then ends, too
            for request in REQUESTS:
                if request not in history.asking:
                    made.end(request)
                    history.settle()
        assert history.asking == {}
        for request in REQUESTS:
            made.end(request)
        store, cache = history.store, history.cache
        store.broken.clear()
        assert_all_can_go(store, cache)
