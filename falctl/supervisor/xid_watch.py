"""
Waits for what the driver tells of a card by itself: XIDs, at the moment that they happen.

One thread and one set of events for each card, since a call can hang with its card; each wait has a deadline. What
happened before the registration is not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pynvml

from falctl.core.cards import Card
from falctl.core.xids import DOUBLE_BIT_ECC

log = logging.getLogger(__name__)

WAIT_MS: Final = 1000
_PAUSE_S: Final = 1.0
"""After an error of the wait itself: a card that is lost answers at once, for ever."""
_NO_INSTANCE: Final = 0xFFFFFFFF
"""The MIG instance of an event that concerns the whole card."""


class XidWatch:
    """*report* is called on *loop* with the UUID of each card, or MIG instance, of *cards* that an XID concerns, and it."""

    def __init__(
        self, cards: Iterable[Card], report: Callable[[str, int], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._by_whole: dict[str, list[Card]] = {}
        for card in cards:
            self._by_whole.setdefault(card.parent_uuid or card.uuid, []).append(card)
        self._report = report
        self._loop = loop
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the threads; they are daemons, so that a hung driver cannot keep us from leaving."""
        for uuid in self._by_whole:
            threading.Thread(target=self._run, args=(uuid,), name=f"xids {uuid}", daemon=True).start()

    def stop(self) -> None:
        """Let each thread end after the call it is in."""
        self._stop.set()

    def _run(self, uuid: str) -> None:
        try:
            events, concerned = _registered(uuid, self._by_whole[uuid])
        except pynvml.NVMLError as error:
            log.debug("gpu.tells_no_xids uuid=%s %s", uuid, error)
            return
        with contextlib.suppress(RuntimeError):  # the loop has been closed: we are leaving
            while not self._stop.is_set():
                for each, xid in self._next(uuid, events, concerned):
                    self._loop.call_soon_threadsafe(self._report, each, xid)
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlEventSetFree(events)

    def _next(self, uuid: str, events: Any, concerned: Mapping[str, int | None]) -> list[tuple[str, int]]:
        try:
            event = pynvml.nvmlEventSetWait_v2(events, WAIT_MS)
        except pynvml.NVMLError_Timeout:
            return []
        except pynvml.NVMLError as error:
            log.debug("gpu.silent uuid=%s %s", uuid, error)
            self._stop.wait(_PAUSE_S)
            return []
        xid = DOUBLE_BIT_ECC
        if event.eventType == pynvml.nvmlEventTypeXidCriticalError:
            xid = int(event.eventData)
        return [
            (each, xid)
            for each, instance in concerned.items()
            if instance is None or event.gpuInstanceId in (_NO_INSTANCE, instance)
        ]


def _registered(uuid: str, cards: Iterable[Card]) -> tuple[Any, dict[str, int | None]]:
    """
    Return a set of events that gets what happens on the card *uuid*, and of *cards* on it the instance that each is.

    None: it is the card itself, or its instance is not told. Raises NVMLError: that card tells nothing.
    """
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    wanted = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
    wanted &= pynvml.nvmlDeviceGetSupportedEventTypes(handle)
    if not wanted:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    instances = {card.uuid: _instance(card) if card.parent_uuid else None for card in cards}
    events = pynvml.nvmlEventSetCreate()
    try:
        pynvml.nvmlDeviceRegisterEvents(handle, wanted, events)
    except pynvml.NVMLError:
        pynvml.nvmlEventSetFree(events)
        raise
    return events, instances


def _instance(card: Card) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetGpuInstanceId(pynvml.nvmlDeviceGetHandleByUUID(card.uuid)))
    except pynvml.NVMLError:
        return None
