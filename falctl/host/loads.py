"""
Load jobs: a model is loaded because the router says so, not because a request waits in a slot for it.

A cache whose loads may run beside executions gets a thread of its own for them; any other loads on the app's
threads, where it takes its turn among the requests. An app with no cache, or with several, takes no load jobs: then
nobody but the app knows which model belongs where.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from falctl.errors import EXIT_CARD_BROKEN
from falctl.host.app_threads import AppThreads
from falctl.host.card_errors import breaks_the_card
from falctl.host.ending import end_process
from falctl.host.load_order import LoadOrder
from falctl.host.prints.aside import aside
from falctl.host.report import Report
from falctl.host.telling import from_the_app
from falctl.toolkit import ModelCache

log = logging.getLogger(__name__)


class Loads:
    """Performs load orders, one after the other. `order` belongs to the event loop."""

    def __init__(self, report: Report, threads: AppThreads) -> None:
        self._report = report
        self._threads = threads
        self._beside: ThreadPoolExecutor | None = None

    def order(self, order: LoadOrder) -> bool:
        """Begin to load; False when this app takes no load jobs. `LoadEnded` tells of the end."""
        cache = self._report.cache
        if cache is None:
            return False
        self._report.load_begins(order.hint)
        if not cache.overlaps:
            self._threads.submit(lambda: self._load(cache, order))
            return True
        if self._beside is None:
            self._beside = ThreadPoolExecutor(1, "loader")
        self._beside.submit(self._load, cache, order)
        return True

    def _load(self, cache: ModelCache[Any], order: LoadOrder) -> None:
        try:
            with aside():
                tier = cache.tier(order.hint)
                load_s = cache.load(order.hint, evict=order.evict)
        except Exception as error:
            if breaks_the_card(error):
                log.critical("card.broken load=%s", order.hint, exc_info=from_the_app(error))
                end_process(EXIT_CARD_BROKEN)
            # The app's code; whoever asks for this model hears of it.
            log.warning("load.failed model=%s %s: %s", order.hint, type(error).__name__, error)
            self._report.soon(self._report.load_failed, order, error)
        else:
            self._report.soon(self._report.load_ended, order, load_s, "ram" if tier == "ram" else "disk")
