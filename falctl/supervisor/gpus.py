"""Keeps the GPU rows of the board, from NVML for cards, from psutil for CPU runners, and says when a card fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import psutil

from falctl.board.board import Board
from falctl.board.rows import GpuRow
from falctl.clock import monotonic_s
from falctl.core.cards import Card
from falctl.core.xids import describe, meaning
from falctl.supervisor.nvml import Sample
from falctl.supervisor.sampler import Sampler
from falctl.supervisor.xid_watch import XidWatch

log = logging.getLogger(__name__)

STALE_S: Final = 5.0
"""A card that NVML has not told of for this long is shown as unknown: a call hangs in its driver."""


class Gpus:
    """
    Writes one `GpuRow` per row of the plan.

    *lost* is called once, with the row and a reason in words, when a card falls off or tells of an error that only its
    reset mends; *struck* when it tells of one that a new process may survive.
    """

    def __init__(
        self,
        board: Board,
        cards: tuple[Card | None, ...],
        *,
        lost: Callable[[int, str], None],
        struck: Callable[[int, str], None],
    ) -> None:
        self._board = board
        self._rows = [_first(number, card) for number, card in enumerate(cards)]
        self._of_uuid = {card.uuid: number for number, card in enumerate(cards) if card is not None}
        self._cards = tuple(card for card in cards if card is not None)
        self._lost = lost
        self._struck = struck
        self._processes: dict[int, psutil.Process] = {}
        self._watching: tuple[Sampler, XidWatch] | None = None
        for number, row in enumerate(self._rows):
            board.put_gpu(number, row)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch the cards, on threads that report to *loop*."""
        self._watching = (
            Sampler(tuple(self._of_uuid), self._sampled, loop),
            XidWatch(self._cards, self._told, loop),
        )
        for each in self._watching:
            each.start()

    def stop(self) -> None:
        """Watch no more."""
        for each in self._watching or ():
            each.stop()

    def tick(self, pids: list[int]) -> None:
        """Look at the CPU runners, whose processes are *pids* by row (0: none now), and at old news of cards."""
        now = monotonic_s()
        for number, row in enumerate(self._rows):
            if row.kind == "cpu":
                self._put(number, self._look(row, pids[number], now))
            elif row.state == "ok" and now - row.at > STALE_S:
                self._put(number, replace(row, state="unknown"))

    def _sampled(self, uuid: str, sample: Sample | None) -> None:
        number = self._of_uuid[uuid]
        row = self._rows[number]
        if sample is None:
            self._put(number, replace(row, state="lost", at=monotonic_s()))
            if row.state != "lost":
                where = f"GPU {row.gpu_index} ({row.gpu_uuid})"
                self._lost(number, f"{where} is lost; see `nvidia-smi` and dmesg for its XID")
            return
        self._put(
            number,
            replace(
                row,
                state="ok",
                total_bytes=sample.total_bytes,
                used_bytes=sample.used_bytes,
                util_pct=sample.util_pct,
                temp_c=sample.temp_c,
                power_w=sample.power_w,
                power_limit_w=sample.power_limit_w,
                at=monotonic_s(),
            ),
        )

    def _told(self, uuid: str, xid: int) -> None:
        number = self._of_uuid[uuid]
        row = self._rows[number]
        what = f"GPU {row.gpu_index} ({uuid}): {describe(xid)}"
        match meaning(xid):
            case "lost":
                self._lost(number, f"{what}; it has to be reset, see `nvidia-smi` and dmesg")
            case "restart":
                self._struck(number, what)
            case "application":
                log.info("gpu.xid %s; left to the app", what)
            case "unknown":
                log.warning("gpu.xid %s; its runners go on", what)

    def _look(self, row: GpuRow, pid: int, now: float) -> GpuRow:
        try:
            process = self._processes.get(pid) or psutil.Process(pid)
            used, busy = process.memory_info().rss, process.cpu_percent()
        except (psutil.Error, ValueError):
            return replace(row, used_bytes=0, util_pct=0, at=now)
        self._processes[pid] = process
        return replace(row, used_bytes=used, util_pct=min(round(busy), 100), at=now)

    def _put(self, number: int, row: GpuRow) -> None:
        self._rows[number] = row
        self._board.put_gpu(number, row)


def _first(number: int, card: Card | None) -> GpuRow:
    if card is None:
        total = psutil.virtual_memory().total
        return GpuRow("cpu", number, "", "CPU", "ok", total_bytes=total, used_bytes=0, at=monotonic_s())
    total = card.total_bytes
    return GpuRow(
        "cuda", card.index, card.uuid, card.name, "ok", total_bytes=total, used_bytes=0, at=monotonic_s()
    )
