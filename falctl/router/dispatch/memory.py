"""
Keeps what the schedulers have learnt in a file, so that neither a new router nor a new falctl begins from nothing.

The file is a convenience: one that cannot be read is replaced by the next write, one that cannot be written costs
what has been learnt since, and either is one line in the log. What other apps had learnt, which do not run now, stays in it. Reading blocks, once, before anybody is served; writing
happens on a thread, into a new file that takes the old one's name when it is whole on disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from falctl.core import learnt
from falctl.core.learnt import Learnt
from falctl.core.policies import State
from falctl.private_file import write_private

log = logging.getLogger(__name__)

PERIOD_S: Final = 10.0
"""Between two writes: what a router that is killed forgets."""
FILE_BYTES_MAX: Final = 64 << 20
"""4,096 hints of 1 KiB take 30 MB; more is no file of ours."""


class Memory:
    """Owner of the file at *path*. It replaces costs and demand of *states*, by alias, when it recalls them."""

    def __init__(self, path: Path, states: Mapping[str, State]) -> None:
        self._path = path
        self._states = states
        self._absent: dict[str, Learnt] = {}
        """What the file holds of apps that do not run."""
        self._kept = self._mark()
        self._writer = ThreadPoolExecutor(1, "memory")
        """One thread: a write that nobody waits for any more must end before the next begins."""
        self._failed = False

    def recall(self) -> None:
        """Take over what the file says. Blocks."""
        try:
            found = learnt.restore(_read(self._path), unnamed=self._unnamed())
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            log.warning("memory.ignored file=%s: %s; costs are learnt anew", self._path, error)
            return
        for alias, state in self._states.items():
            if alias in found:
                state.costs, state.demand = found.pop(alias)
        self._absent = found
        self._kept = self._mark()
        log.info("memory.recalled observations=%d", sum(state.demand.n for state in self._states.values()))

    async def keep_for_ever(self) -> None:
        """Write whenever something has been learnt, every `PERIOD_S` at most."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.keep()

    async def keep(self) -> None:
        """Write now, if something has been learnt since the last time."""
        mark = self._mark()
        if mark == self._kept:
            return
        known = {alias: (state.costs, state.demand) for alias, state in self._states.items()}
        table = learnt.dump(self._absent | known)
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, _write, self._path, table)
        except OSError as error:
            if not self._failed:
                log.warning("memory.not_kept file=%s: %s; tried again", self._path, error)
            self._failed = True
        else:
            self._kept, self._failed = mark, False

    def _unnamed(self) -> str | None:
        """Return whose a file is that names no app."""
        return next(iter(self._states)) if len(self._states) == 1 else None

    def _mark(self) -> list[tuple[int, int]]:
        """Return what differs whenever there is something new to keep."""
        return [(state.costs.observations, state.demand.n) for state in self._states.values()]


def _read(path: Path) -> object:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        msg = f"it is over {FILE_BYTES_MAX >> 20} MiB"
        raise ValueError(msg)
    return json.loads(content)


def _write(path: Path, table: dict[str, Any]) -> None:
    """Blocks. Raises OSError."""
    write_private(path, json.dumps(table, separators=(",", ":"), allow_nan=False).encode())
