"""
A writer in a process of its own: ``python -m tests.board.writers FD RUNNER MODE FIRST``.

``flat-out`` puts one numbered row after the other until it is killed; ``dies`` puts row FIRST, waits for its
standard input to close, and dies by SIGKILL with half of the next row stored.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

from falctl.board import layout as at
from falctl.board.board import Board
from falctl.clock import monotonic_s
from tests.board.samples import numbered_life, told_apart

LIFETIME_S: Final = 600.0
"""It ends by then even if nobody kills it."""


class Dying(Board):
    def _store(self, region: at.Region, payload: bytes) -> None:
        super()._store(region, payload[: len(payload) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    fd, runner, mode, n = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    board = Board.attach(fd)
    if mode == "dies":
        board.put_runner(runner, told_apart(n))
        sys.stdin.read()
        Dying.attach(fd).put_runner(runner, told_apart(n + 1))
    end_at = monotonic_s() + LIFETIME_S
    while monotonic_s() < end_at:
        n += 1
        board.put_runner(runner, told_apart(n))
        board.put_life(runner, numbered_life(n))


if __name__ == "__main__":
    main()
