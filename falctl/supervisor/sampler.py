"""Looks at the cards once a second, each in a thread of its own: an NVML call can hang with its card."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

import pynvml

from falctl.supervisor import nvml

log = logging.getLogger(__name__)

PERIOD_S: Final = 1.0


class Sampler:
    """
    Reports a `nvml.Sample`, or None for a card that is lost, per card and second.

    *report* is called on *loop*. A card whose calls hang stops being reported; its row on the board grows old.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        report: Callable[[str, nvml.Sample | None], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._uuids = tuple(uuids)
        self._report = report
        self._loop = loop
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the threads; they are daemons, so that a hung driver cannot keep us from leaving."""
        for uuid in self._uuids:
            threading.Thread(target=self._run, args=(uuid,), name=f"nvml {uuid}", daemon=True).start()

    def stop(self) -> None:
        """Let each thread end after the call it is in."""
        self._stop.set()

    def _run(self, uuid: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: we are leaving
            while not self._stop.is_set():
                self._look(uuid)
                self._stop.wait(PERIOD_S)

    def _look(self, uuid: str) -> None:
        try:
            sample = nvml.sample(uuid)
        except nvml.CardLostError as error:
            log.debug("gpu.lost uuid=%s %s", uuid, error)
            self._loop.call_soon_threadsafe(self._report, uuid, None)
        except pynvml.NVMLError as error:
            log.debug("gpu.silent uuid=%s %s", uuid, error)
        else:
            self._loop.call_soon_threadsafe(self._report, uuid, sample)
