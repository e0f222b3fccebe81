"""
A process that keeps the board of a small fleet as falctl does: it holds the lock, beats, and does as it is told.

Run as ``python -m tests.dashboard.writer``; it prints "ready" once the board is there. A line on standard input
becomes the name of the model that runner 0 holds; the end of input ends it.
"""

from __future__ import annotations

import os
import select
import sys

from falctl.board.rows import RunnerRow
from falctl.clock import monotonic_s
from falctl.core.types import Epoch
from falctl.home import Instance, Lock, find_home
from tests.dashboard import fleets


def main() -> None:
    home = find_home()
    lock = Lock(home)
    lock.acquire()
    home.create()
    board = fleets.new_board(home.root, runners=5, gpus=4)
    fleets.put_busy(board, now=monotonic_s(), pid=os.getpid())
    lock.describe(Instance(os.getpid(), "http://127.0.0.1:8808", detached=False))
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.2)
        now = monotonic_s()
        if readable:
            line = sys.stdin.readline()
            if not line:
                break
            model = fleets.model(line.rstrip("\n"))
            board.put_runner(
                0, RunnerRow(Epoch(1), 1, fleets.hints(model.name), models=(model,), beat_at=now)
            )
        board.put_router(fleets.busy_router(now=now))
    lock.release()


if __name__ == "__main__":
    main()
