"""
The apps of this falctl: each with its runners, and a scheduler of its own, found by the alias that clients write.

A runner serves one app, so the fleets of two apps are disjoint: neither can take a slot, a place in the queue or a
decision from the other, and each has its own queue, demand and learnt costs. With one app any owner and any alias
address it, and so do paths without them; with several the alias must be one of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from falctl import wire
from falctl.config import QueueConfig, RoutingConfig
from falctl.core.retries import CONDITIONS, SILENT, AppRetries
from falctl.core.sources import named
from falctl.core.types import RunnerId, Wanted
from falctl.errors import NotFoundError
from falctl.router.dispatch.driver import Driver

UNNAMED: Final = ""
"""The alias of the app of a falctl that was given one app without naming it."""


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What an app declares that concerns the router, as its hosts tell it; None: nothing."""

    name: str = ""
    """What it calls itself, for people; empty: it does not say."""
    start_timeout_s: float | None = None
    """A request that says nothing else is given up if it has not started by then."""
    request_timeout_s: float | None = None
    """Its hosts end a request that takes longer."""
    retries: AppRetries = SILENT
    joint: str = ""
    """What it writes between a model and what is laid upon it; empty: nothing is."""


@dataclass(slots=True, eq=False)
class LocalApp:
    """An app, and who decides where its requests go."""

    alias: str
    """NAME of ``[apps.NAME]``, or `UNNAMED`."""
    runners: frozenset[RunnerId]
    driver: Driver
    settings: AppSettings | None = None
    """None: no runner of it has been heard of yet. The links to the runners set it, through `learn`."""
    when_known: list[Callable[[], None]] = field(default_factory=list)
    """Called once, when the settings become known."""

    def learn(self, settings: AppSettings) -> None:
        """Go by *settings* from now on: a runner has told them."""
        first, self.settings = self.settings is None, settings
        if first:
            for call in self.when_known:
                call()

    @property
    def name(self) -> str:
        """Return what to call it: its alias, else what it calls itself; empty: nobody has said."""
        return self.alias or (self.settings.name if self.settings is not None else "")

    @property
    def start_timeout_s(self) -> float | None:
        """Return how long a request may wait that says nothing itself; None: for ever, as far as we know."""
        return None if self.settings is None else self.settings.start_timeout_s

    @property
    def request_timeout_s(self) -> float | None:
        """Return how long its hosts let a request run; None: they have said nothing."""
        return None if self.settings is None else self.settings.request_timeout_s

    @property
    def joint(self) -> str | None:
        """Return what it writes between a model and what is laid upon it; empty: nothing is; None: it has said nothing."""
        return None if self.settings is None else self.settings.joint

    def named(self, wanted: Wanted | None) -> Wanted | None:
        """Return what is *wanted* by the name that its runners have for it, as far as they have said how they join names."""
        return wanted if wanted is None or self.joint is None else named(wanted, self.joint)

    @property
    def retries(self) -> AppRetries:
        """Return what it says of retries, as far as we know."""
        return SILENT if self.settings is None else self.settings.retries


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
            names = ", ".join(self._apps)
            msg = f"name one of the apps {names} in the path: /run/{{owner}}/{{alias}}, any owner will do (falctl run: --app)"
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


def settings_of(hello: wire.Hello) -> AppSettings:
    """Return what a host says of its app; a condition of retries that we do not know is not there."""
    budgets = {condition: hello.retries[condition] for condition in CONDITIONS if condition in hello.retries}
    skips = frozenset(condition for condition in CONDITIONS if condition in hello.retry_skips)
    return AppSettings(
        hello.app_name,
        hello.start_timeout_s,
        hello.request_timeout_s,
        AppRetries(budgets, skips),
        hello.joint,
    )
