"""
All queued jobs that wait, of which the scheduler sees a window.

A decision costs time and memory with every request that it may choose, so out of tens of thousands the scheduler gets
to see the first `WINDOW_MAX` and the first of each hint, no matter how far behind that is: with counts per hint for
the rest, more would change hardly any decision. First is who has normal priority, then who came first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from falctl.core.types import Hint, Priority, RequestId

WINDOW_MAX: Final = 512
ABOUT: Final = 0.25
FEW: Final = 8
"""A count that has changed by less than this share, or number, is still about what it was: telling costs a decision."""

_Key: TypeAlias = tuple[bool, int]
"""Whether its priority is low, and its order of arrival."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that waits. ``order`` is unique, grows with every submission, and survives a retry."""

    request: RequestId
    order: int
    hint: Hint | None = None
    priority: Priority = "normal"
    start_by: float | None = None
    """It is given up if it has not started by this instant; None: it waits as long as it takes."""

    @property
    def key(self) -> _Key:
        """Return its place among all: the least is first."""
        return (self.priority == "low", self.order)


@dataclass(frozen=True, slots=True)
class Change:
    """What the scheduler is to see from now on, the first of them first, and what no more."""

    show: tuple[Entry, ...] = ()
    hide: tuple[Entry, ...] = ()
    behind: tuple[tuple[Hint, int], ...] = ()
    """How many wait for a hint out of its sight, where that is not about what it was."""


@dataclass(slots=True)
class Backlog:
    """
    Owner of who waits and who of them is shown. Every change costs a few searches in sorted lists.

    Removing from the middle moves what stands behind: 20 us for 100,000 entries.
    """

    window_max: int = WINDOW_MAX
    _entries: dict[RequestId, Entry] = field(default_factory=dict)
    _by_key: dict[_Key, Entry] = field(default_factory=dict)
    _keys: list[_Key] = field(default_factory=list)
    _groups: dict[Hint | None, list[_Key]] = field(default_factory=dict)
    _start_by: dict[RequestId, float] = field(default_factory=dict)
    _shown: dict[RequestId, Entry] = field(default_factory=dict)
    _shown_of: Counter[Hint | None] = field(default_factory=Counter)
    """How many of each hint are shown."""
    _told: dict[Hint, int] = field(default_factory=dict)
    """How many of each hint the scheduler takes to be hidden; no hint is in it with none."""

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, request: RequestId) -> bool:
        return request in self._entries

    @property
    def shown(self) -> Iterator[Entry]:
        """Iterate over what the scheduler sees."""
        return iter(self._shown.values())

    def is_shown(self, request: RequestId) -> bool:
        """Return whether the scheduler sees *request*."""
        return request in self._shown

    def add(self, entry: Entry) -> Change:
        """Let *entry* wait, in its place: at the end, unless it has waited before."""
        assert entry.request not in self._entries
        assert entry.key not in self._by_key
        before = self._first(entry.hint)
        self._entries[entry.request] = self._by_key[entry.key] = entry
        insort(self._keys, entry.key)
        insort(self._groups.setdefault(entry.hint, []), entry.key)
        if entry.start_by is not None:
            self._start_by[entry.request] = entry.start_by
        return self._look_at(entry.hint, entry, before, *self._at_the_edge())

    def remove(self, request: RequestId) -> Change:
        """Let *request* wait no more, if it does."""
        entry = self._entries.pop(request, None)
        if entry is None:
            return Change()
        del self._by_key[entry.key]
        _take(self._keys, entry.key)
        group = self._groups[entry.hint]
        _take(group, entry.key)
        if not group:
            del self._groups[entry.hint]
        self._start_by.pop(request, None)
        if was_shown := request in self._shown:
            self._hide(entry)
        change = self._look_at(entry.hint, self._first(entry.hint), *self._at_the_edge())
        return replace(change, hide=(entry, *change.hide)) if was_shown else change

    def position(self, request: RequestId) -> int | None:
        """Return how many of its own priority stand before *request*; None: it does not wait."""
        entry = self._entries.get(request)
        if entry is None:
            return None
        first = bisect_left(self._keys, (entry.priority == "low", -1))
        return bisect_left(self._keys, entry.key) - first

    def late(self, now: float) -> list[RequestId]:
        """Return those that should have started by *now*."""
        return [request for request, start_by in self._start_by.items() if start_by <= now]

    def counts(self) -> dict[Hint | None, int]:
        """Return how many wait for each hint."""
        return {hint: len(group) for hint, group in self._groups.items()}

    def hidden(self, hint: Hint | None) -> int:
        """Return how many wait for *hint* and are not shown."""
        return len(self._groups.get(hint, ())) - self._shown_of[hint]

    def check(self) -> None:
        """Assert that what is shown is exactly what should be, by plain counting."""
        ordered = sorted(self._entries.values(), key=lambda entry: entry.key)
        assert [entry.key for entry in ordered] == self._keys
        due = ordered[: self.window_max]
        firsts = {entry.hint: entry for entry in reversed(ordered)}
        assert set(self._shown) == {entry.request for entry in (*due, *firsts.values())}
        for hint in firsts:
            assert self.hidden(hint) == sum(e.hint == hint and e.request not in self._shown for e in ordered)
            told = 0 if hint is None else self._told.get(hint, 0)
            assert hint is None or abs(self.hidden(hint) - told) < max(ABOUT * told, FEW)
            assert told == 0 or self.hidden(hint)
        assert self._told.keys() <= firsts.keys() >= self._shown_of.keys()
        assert self._start_by == {e.request: e.start_by for e in ordered if e.start_by is not None}

    def _first(self, hint: Hint | None) -> Entry | None:
        group = self._groups.get(hint)
        return self._by_key[group[0]] if group else None

    def _at_the_edge(self) -> list[Entry]:
        """Return the last that stands inside the window and the first that stands outside."""
        return [self._by_key[key] for key in self._keys[self.window_max - 1 : self.window_max + 1]]

    def _look_at(self, changed: Hint | None, *affected: Entry | None) -> Change:
        """Show and hide those of *affected* that a change of *changed* has moved in or out; nobody else can have moved."""
        show, hide = list[Entry](), list[Entry]()
        for entry in affected:
            if entry is None or (wanted := self._belongs(entry)) == (entry.request in self._shown):
                continue
            if wanted:
                self._shown[entry.request] = entry
                self._shown_of[entry.hint] += 1
                show.append(entry)
            else:
                self._hide(entry)
                hide.append(entry)
        behind = tuple(self._news({changed, *(entry.hint for entry in affected if entry is not None)}))
        return Change(tuple(sorted(show, key=lambda entry: entry.key)), tuple(hide), behind)

    def _news(self, hints: set[Hint | None]) -> Iterator[tuple[Hint, int]]:
        for hint in hints:
            if hint is None:
                continue
            count, told = self.hidden(hint), self._told.get(hint, 0)
            if abs(count - told) < max(ABOUT * told, FEW) and (count or not told):
                continue
            self._told[hint] = count
            if not count:
                del self._told[hint]
            yield hint, count

    def _hide(self, entry: Entry) -> None:
        del self._shown[entry.request]
        self._shown_of[entry.hint] -= 1
        if not self._shown_of[entry.hint]:
            del self._shown_of[entry.hint]

    def _belongs(self, entry: Entry) -> bool:
        in_window = len(self._keys) <= self.window_max or entry.key < self._keys[self.window_max]
        return in_window or self._groups[entry.hint][0] == entry.key


def _take(keys: list[_Key], key: _Key) -> None:
    at = bisect_left(keys, key)
    assert keys[at] == key
    del keys[at]
