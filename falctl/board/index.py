"""A reader's own inverted index, hint to runners: valid as long as one small slice of the board stays equal."""

from __future__ import annotations

from array import array
from typing import Final

from falctl.board import layout as at
from falctl.board.board import Board
from falctl.board.rows import RunnerRow
from falctl.core.types import Hint, RunnerId

_NOBODY: Final[frozenset[RunnerId]] = frozenset()


class HintIndex:
    """Who is warm for which hint, as the board has it. Not thread-safe; a change costs only the changed rows."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._versions = board.versions
        self._seen = bytes(len(board.versions()))
        self._rows: list[RunnerRow | None] = [None] * board.runners
        self._holders: dict[Hint, frozenset[RunnerId]] = {}
        self._unreported: set[RunnerId] = set()

    def refresh(self) -> tuple[RunnerId, ...]:
        """Read what has changed; return the runners whose row has changed since the last `refresh`, each once."""
        if self._versions() != self._seen:
            self._catch_up()
        if not self._unreported:
            return ()
        changed = tuple(sorted(self._unreported))
        self._unreported.clear()
        return changed

    def row(self, runner: RunnerId) -> RunnerRow | None:
        """Return the row as the last `refresh` or `holders` saw it; None if there is none."""
        return self._rows[runner]

    def holders(self, hint: Hint) -> frozenset[RunnerId]:
        """Return the runners that are warm for *hint* now."""
        if self._versions() != self._seen:
            self._catch_up()
        return self._holders.get(hint, _NOBODY)

    def _catch_up(self) -> None:
        seen, now = array("Q", self._seen), array("Q", self._versions())
        changed = [
            i for i in range(self._board.runners) if now[at.FIRST_RUNNER + i] != seen[at.FIRST_RUNNER + i]
        ]
        for runner in map(RunnerId, changed):
            word = at.FIRST_RUNNER + runner
            number, row = self._board.numbered_runner(runner)
            if number < now[word] and now[word] % 2 == 0:
                # Not readable yet although complete. An odd word is let go: it changes when its writer is done.
                now[word] = seen[word]
            self._take(runner, row)
        self._seen = now.tobytes()

    def _take(self, runner: RunnerId, row: RunnerRow | None) -> None:
        former = self._rows[runner]
        if row is former:
            return
        self._rows[runner] = row
        self._unreported.add(runner)
        if former and row and former.hints == row.hints:
            return  # most rows only report progress
        old, new = _hints(former), _hints(row)
        for hint in old - new:
            rest = self._holders[hint] - {runner}
            if rest:
                self._holders[hint] = rest
            else:
                del self._holders[hint]
        for hint in new - old:
            self._holders[hint] = self._holders.get(hint, _NOBODY) | {runner}


def _hints(row: RunnerRow | None) -> frozenset[Hint]:
    return frozenset((row and row.hints) or ())
