"""Which models there are to ask for, and which of them are warm where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from falctl.config import Config, ModelsConfig, RunnersConfig
from falctl.errors import NotFoundError
from falctl.router.dispatch.apps import UNNAMED, Apps, LocalApp

_FOLDER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PIPELINE: Final = "model_index.json"
"""What makes a folder a diffusers pipeline."""
_OWNER: Final = "falctl"


class NoSuchModelError(NotFoundError):
    """A model that is not listed."""

    error_type = "model_not_found"


class Models:
    """Lists them. What `[models]` allows counts for the app that comes with falctl; of any app, what is resident."""

    def __init__(self, apps: Apps, config: Config, *, since: int) -> None:
        self._apps = apps
        self._models = config.models
        named = {alias: app.app for alias, app in config.apps.items()} or {UNNAMED: config.runners.app}
        self._with_demos = frozenset(alias for alias, app in named.items() if app == RunnersConfig().app)
        self._since = since

    def table(self) -> list[dict[str, Any]]:
        """Return every model as OpenAI's clients read it, resident ones with their runners. Blocks."""
        found = dict[str, list[int]]()
        for app in self._apps:
            named = _allowed(self._models) if app.alias in self._with_demos else []
            for model in [*named, *_resident(app)]:
                found[self.name_of(app, model)] = _runners(app, model)
        return [self._row(name, runners) for name, runners in found.items()]

    def one(self, name: str) -> dict[str, Any]:
        """Return one of them. Blocks. Raises NoSuchModelError."""
        for row in self.table():
            if row["id"] == name:
                return row
        msg = f"there is no model {name!r} here; GET /v1/models lists what there is"
        raise NoSuchModelError(msg)

    def name_of(self, app: LocalApp, model: str) -> str:
        """Return how clients call a model: where there are several apps, with its app's alias before it."""
        return f"{app.alias}/{model}" if self._apps.several else model

    def find(self, name: str) -> tuple[LocalApp, str]:
        """Return the app that serves the model that clients call *name*, and how the app calls it. Raises NotFoundError."""
        if not self._apps.several:
            return self._apps.bare(), name
        alias, _, model = name.partition("/")
        app = self._apps.named(alias)
        if app is None:
            msg = f"there is no model {name!r} here: name the app before it, as in {next(iter(self._apps)).alias}/MODEL"
            raise NoSuchModelError(msg)
        return app, model or alias

    def _row(self, name: str, runners: list[int]) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._since,
            "owned_by": _OWNER,
            "resident": bool(runners),
            "runners": runners,
        }


def _allowed(models: ModelsConfig) -> list[str]:
    from runners.demo import DEMO_MODELS  # where the app that comes with falctl is served

    folders = [name for parent in models.paths for name in _pipelines(parent)]
    return [*DEMO_MODELS, *sorted(folders), *models.allow]


def _pipelines(parent: Path) -> Iterable[str]:
    try:
        names = [path.name for path in parent.iterdir() if (path / _PIPELINE).is_file()]
    except OSError:
        return []
    return [name for name in names if _FOLDER.fullmatch(name)]


def _resident(app: LocalApp) -> list[str]:
    views = app.driver.scheduler.fleet.runners.values()
    return sorted({hint for view in views for hint in view.hints or ()})


def _runners(app: LocalApp, model: str) -> list[int]:
    views = app.driver.scheduler.fleet.runners
    return sorted(runner for runner, view in views.items() if model in (view.hints or ()))
