"""
What a person says of models: unload, pin, unpin, and load into host memory; a load onto a card is in `model_loads`.

Without a runner's name a word is for every runner that has the model. A host acts on the thread that its requests run
on, so that it waits for what executes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from falctl.board.rows import ModelRow
from falctl.core.types import RunnerId
from falctl.errors import BadRequestError, NotFoundError, UnavailableError
from falctl.router.dispatch.apps import Apps, LocalApp
from falctl.router.own.reasons import which_app
from falctl.router.runners.fleet import FleetLinks
from falctl.router.runners.transport import LostError, UnreachableError

Deed: TypeAlias = Literal["unload", "pin", "unpin"]
Facts: TypeAlias = dict[str, Any]

FAILED_FROM: Final = 400
_THERE: Final = frozenset({"ready", "draining"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, and where. None: that is not said."""

    model: str
    runner: int | None = None
    app: str | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host said to an order, or is said for it: an HTTP status and a JSON object."""

    runner: RunnerId
    status: int
    told: Facts

    @property
    def failed(self) -> bool:
        return self.status >= FAILED_FROM

    @property
    def detail(self) -> str:
        """Return why it failed, for a person."""
        return f"runner {self.runner}: {self.told.get('detail', 'it gave no reason')}"


class ModelOrders:
    """Finds whom an order is for, and has it done there."""

    def __init__(self, apps: Apps, fleet: FleetLinks) -> None:
        self._apps = apps
        self._fleet = fleet
        self.pinned: Callable[[RunnerId, str, bool], None] = _nobody
        """Who hears what is to stay pinned on a runner, and what is not any more; set by `StandingModels`."""
        self.was_pinned: Callable[[RunnerId, Collection[str]], Collection[str]] = _none
        """Who says which of some names are to be pinned again on a runner that comes back; set there, too."""

    async def do(self, deed: Deed, asked: Asked) -> list[Answer]:
        """
        Have *deed* done where it applies; return what the hosts answered, at least one of them.

        Raises:
            NotFoundError, BadRequestError: there is no such app or runner, it takes an alias to tell which app is
                meant, or no runner has the model.
            UnavailableError: the runner that is named takes no orders now.
        """
        app, runner = self.place(asked)
        names = self.names(asked.model)
        away = (
            self._forget_pins(app.runners if runner is None else [runner], names) if deed == "unpin" else []
        )
        if runner is None:
            runners = [r for r in sorted(app.runners) if _concerns(deed, asked, self.row(r, names))]
        elif away:
            runners = []
        else:
            self._check_up(runner)
            runners = [runner]
        if not (runners or away):
            raise NotFoundError(_nowhere(deed, asked))
        tier = {} if asked.tier is None else {"tier": asked.tier}
        answers = await asyncio.gather(
            *(
                self.order(r, {"do": deed, "model": self._name(r, names, asked.model), **tier})
                for r in runners
            )
        )
        for answer in answers if deed != "unload" else ():
            if not answer.failed:
                self.pinned(answer.runner, self._name(answer.runner, names, asked.model), deed == "pin")
        self._fleet.refresh()
        return [*answers, *away]

    async def order(self, runner: RunnerId, order: dict[str, str]) -> Answer:
        """Return what the host of *runner* answers to *order* (`wire.MODELS_PATH`), when it has done it or refused."""
        if (link := self._fleet.link(runner)) is not None:
            try:
                return Answer(runner, *await link.order(order))
            except (LostError, UnreachableError):
                pass
        return Answer(runner, UnavailableError.status, {"detail": "it was lost before it had answered"})

    # --- who is meant ----------------------------------------------------------------------------

    def place(self, asked: Asked) -> tuple[LocalApp, RunnerId | None]:
        """
        Return the app that is meant, and the runner if one is named.

        Raises:
            NotFoundError, BadRequestError: as `do`.
        """
        named = None if asked.app is None else self._apps.find(asked.app)
        if asked.runner is None:
            return named or self._knowing(asked.model), None
        numbers = sorted(number for app in self._apps for number in app.runners)
        if asked.runner not in numbers:
            msg = f"no runner {asked.runner}; there are {', '.join(map(str, numbers))}"
            raise NotFoundError(msg)
        app = self._apps.of(RunnerId(asked.runner))
        if named is not None and named is not app:
            msg = f"runner {asked.runner} serves the app {app.alias}, not {named.alias}"
            raise BadRequestError(msg)
        return app, RunnerId(asked.runner)

    def names(self, model: str) -> Collection[str]:
        """Return *model* as hosts may know it: in a header it came as bytes, which are decoded as latin-1."""
        self._fleet.refresh()
        return (model, model.encode(errors="surrogatepass").decode("latin-1"))

    def row(self, runner: RunnerId, names: Collection[str]) -> ModelRow | None:
        """Return what the board says of a model that is called by one of *names*; None: *runner* does not have it."""
        row = self._fleet.row(runner)
        return next((m for m in row.models if m.name in names), None) if row is not None else None

    def _knowing(self, model: str) -> LocalApp:
        """Return the only app, or of several the one that has *model* on a runner."""
        apps, names = list(self._apps), self.names(model)
        if len(apps) > 1:
            apps = [app for app in apps if any(self.row(r, names) is not None for r in app.runners)]
        if len(apps) != 1:
            raise BadRequestError(which_app(self._apps))
        return apps[0]

    def _forget_pins(self, runners: Iterable[RunnerId], names: Collection[str]) -> list[Answer]:
        """Let those of *runners* that are away come back without these pins; return whom that concerns."""
        concerned = []
        for runner in sorted(runners):
            if self._state(runner) not in _THERE and (pins := self.was_pinned(runner, names)):
                for name in pins:
                    self.pinned(runner, name, False)  # noqa: FBT003 - a callback's
                concerned.append(Answer(runner, 200, {"tier": None, "changed": True}))
        return concerned

    def _name(self, runner: RunnerId, names: Collection[str], model: str) -> str:
        row = self.row(runner, names)
        return model if row is None else row.name

    def _check_up(self, runner: RunnerId) -> None:
        if self._fleet.link(runner) is None:
            msg = f"runner {runner} takes no orders now: it is {self._state(runner)}"
            raise UnavailableError(msg)

    def _state(self, runner: RunnerId) -> str:
        return self._fleet.states().get(runner, (0, "starting"))[1]


def _concerns(deed: Deed, asked: Asked, row: ModelRow | None) -> bool:
    """Return whether a runner with this row of the model has something to do."""
    if row is None:
        return False
    if deed == "unload":
        return row.tier == "vram" or (row.tier == "ram" and asked.tier != "ram")
    return row.pinned or deed == "pin"


def _nowhere(deed: Deed, asked: Asked) -> str:
    name = asked.model if asked.model.isprintable() else ascii(asked.model)
    if deed == "unpin":
        return f"{name} is pinned on no runner"
    fix = "; name a runner to have it loaded and pinned there: --runner N" if deed == "pin" else ""
    where = " on its card" if deed == "unload" and asked.tier == "ram" else ""
    return f"no runner has {name}{where}{fix}"


def _nobody(runner: RunnerId, model: str, pinned: bool) -> None:  # noqa: FBT001 - the shape of a callback
    """Hear nothing."""


def _none(runner: RunnerId, names: Collection[str]) -> Collection[str]:
    """Know of no pins."""
    return ()
