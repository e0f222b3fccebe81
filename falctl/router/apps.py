"""
The apps of this falctl: each with its runners, and a scheduler of its own, found by the alias that clients write.

A runner serves one app, so the fleets of two apps are disjoint: neither can take a slot, a place in the queue or a
decision from the other, and each has its own queue, demand and learnt costs. With one app any owner and any alias
address it, and so do paths without them; with several the alias must be one of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from falctl.config import QueueConfig, RoutingConfig
from falctl.core.types import RunnerId
from falctl.errors import NotFoundError
from falctl.router.driver import Driver

UNNAMED: Final = ""
"""The alias of the app of a falctl that was given one app without naming it."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalApp:
    """An app, and who decides where its requests go."""

    alias: str
    """NAME of ``[apps.NAME]``, or `UNNAMED`."""
    runners: frozenset[RunnerId]
    driver: Driver


class Apps:
    """Owner of the apps, of which there is at least one. They stay the same as long as falctl runs."""

    def __init__(self, apps: Iterable[LocalApp]) -> None:
        self._apps = {app.alias: app for app in apps}
        self._by_runner = {runner: app for app in self for runner in app.runners}
        self._only = next(iter(self)) if len(self._apps) == 1 else None

    def __iter__(self) -> Iterator[LocalApp]:
        return iter(self._apps.values())

    @property
    def several(self) -> bool:
        """Return whether an alias is needed to tell one from the other."""
        return self._only is None

    def named(self, alias: str) -> LocalApp | None:
        """Return the app that is called exactly so."""
        return self._apps.get(alias)

    def find(self, alias: str) -> LocalApp:
        """
        Return the app that clients address by *alias*: with one app any.

        Raises:
            NotFoundError: there are several, and none is called so; names them.
        """
        found = self._only or self._apps.get(alias)
        if found is None:
            msg = f"no app {alias[:64]!r}; there are {', '.join(self._apps)}"
            raise NotFoundError(msg)
        return found

    def bare(self) -> LocalApp:
        """
        Return the app of paths that name none.

        Raises:
            NotFoundError: there are several; names them, and how they are called.
        """
        if self._only is None:
            msg = f"name one of the apps {', '.join(self._apps)} in the path: /run/{{owner}}/{{alias}}, any owner will do"
            raise NotFoundError(msg)
        return self._only

    def of(self, runner: RunnerId) -> LocalApp:
        """Return the app that *runner* serves."""
        return self._by_runner[runner]

    def configure(self, *, routing: RoutingConfig, queue: QueueConfig) -> None:
        """
        Decide by these rules from now on, in every app.

        Raises:
            ConfigError: the policy cannot be made; nothing has changed.
        """
        policies = [app.driver.make_policy(routing) for app in self]
        for app, policy in zip(self, policies, strict=True):
            app.driver.configure(policy, queue)

    def drain(self) -> None:
        """Refuse what waits and whatever comes."""
        for app in self:
            app.driver.drain()

    def place_s(self) -> float:
        """Return in how many seconds the next place in a queue should turn free."""
        return min(app.driver.place_s() for app in self)
