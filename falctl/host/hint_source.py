"""Ask the app for its hints, on its own thread, and keep the newest usable answer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from falctl.app import App, gives_hints
from falctl.core.hints import Cleaned, clean
from falctl.core.types import Hint
from falctl.host.prints.aside import aside
from falctl.host.telling import said, user_line

log = logging.getLogger(__name__)

_COMPLAINTS_MAX: Final = 256
"""Distinct lines logged in the life of a runner; an app that makes up new bad hints must not fill the disk."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer of the app. A later question has a higher number, whichever answer arrives first."""

    number: int
    cleaned: Cleaned


class HintSource:
    """The hints of one app. `ask` runs on an app thread; all else belongs to the event loop."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._numbers = itertools.count(1)
        self._newest = 0
        self._complained: set[str] = set()
        self.given = gives_hints(type(app))
        """Whether the app gives hints at all."""
        self.known: tuple[Hint, ...] | None = () if self.given else None
        self.overflow = 0

    def ask(self) -> Asked:
        """Call `provide_hints`; never raises."""
        number = next(self._numbers)
        with aside():
            return Asked(number, self._answer())

    def _answer(self) -> Cleaned:
        try:
            given = self._app.provide_hints()
            close = getattr(given, "close", None) if hasattr(given, "cr_frame") else None
            if close is not None:
                close()  # an `async def provide_hints`: unusable, and it must not warn that nobody awaited it
            return clean(given)
        except BaseException as error:  # noqa: BLE001 - the app's code; the line goes to the log once
            return Cleaned(
                None, (f"provide_hints() raised {said(error)}{user_line(error)}; the last hints stay",)
            )

    def accept(self, asked: Asked) -> bool:
        """Make the answer known unless a newer one is; return whether the hints have changed."""
        for complaint in asked.cleaned.complaints:
            self._complain(complaint)
        if asked.number < self._newest or asked.cleaned.kept is None:
            return False
        self._newest = asked.number
        changed = asked.cleaned.kept != self.known
        self.known, self.overflow = asked.cleaned.kept, asked.cleaned.overflow
        return changed

    def presume(self, *, loaded: Hint, evicted: Collection[str]) -> None:
        """
        Take *loaded* for warm and *evicted* for cold until the app has been asked.

        A load job may end while every app thread is busy, and `provide_hints` is called on those alone. A name that
        cannot be published is not presumed: it would break the header of an answer.
        """
        if self.known is not None:
            kept = tuple(h for h in self.known if h not in evicted and h != loaded)
            self.known = clean([loaded, *kept]).kept

    def holds(self, hint: Hint | None) -> bool:
        """Return whether *hint* is known to be warm."""
        return hint is not None and self.known is not None and hint in self.known

    def header(self) -> bytes | None:
        """Return the value of the hints header; None when the app gives none."""
        return None if self.known is None else ",".join(self.known).encode("latin-1")

    def _complain(self, complaint: str) -> None:
        if complaint not in self._complained and len(self._complained) < _COMPLAINTS_MAX:
            self._complained.add(complaint)
            log.warning("hints.faulty %s", complaint)
