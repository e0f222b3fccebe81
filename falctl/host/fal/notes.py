"""What a person should hear of a fal.App's settings: those that hold differently here, each in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from falctl.config import Config
from falctl.config_values import format_duration
from falctl.host.fal.settings import Settings
from falctl.host.fal.storage import outside_data
from falctl.host.limits import cuts
from falctl.wire import HostSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Where an app runs."""

    spec: HostSpec
    config: Config
    environ: Mapping[str, str]

    @property
    def section(self) -> str:
        """Return the section of the configuration that gives it its cards and runners."""
        return section_of(self.spec)


def section_of(spec: HostSpec) -> str:
    """Return the section of the configuration that gives the app of *spec* its cards and runners."""
    return f"apps.{spec.alias}" if spec.alias else "runners"


def notes(settings: Settings, place: Place) -> list[str]:
    """Return the lines."""
    return [
        *_unused(settings, place),
        *_concurrency(settings, place),
        *_timeouts(settings, place),
        *_data(settings, Path(place.spec.data_dir)),
        *_secrets(settings, place.environ),
    ]


def _unused(settings: Settings, place: Place) -> Iterator[str]:
    if settings.ignored:
        yield (
            f"not used here: {', '.join(settings.ignored)}; "
            f"the app runs in this Python, on the cards of {place.section}.gpus"
        )
    if settings.auth is not None:
        holds = "a key is asked for" if place.config.server.api_keys else "nobody needs a key"
        yield f"not used here: app_auth={settings.auth!r}; server.api_keys decides who may call, and {holds}"


def _concurrency(settings: Settings, place: Place) -> Iterator[str]:
    runners = place.spec.peers
    count = f"are {runners} runners" if runners > 1 else "is 1 runner"
    there_are = f"there {count}, always up; {place.section}.count says how many"
    if settings.elastic:
        yield f"not used here: {', '.join(settings.elastic)}; nothing is scaled: {there_are}"
    if settings.max_concurrency is not None and settings.max_concurrency != runners:
        yield f"max_concurrency={settings.max_concurrency} is taken as {runners}: {there_are}"
    if settings.min_concurrency > runners:
        yield f"min_concurrency={settings.min_concurrency} is taken as {runners}: {there_are}"


def _timeouts(settings: Settings, place: Place) -> Iterator[str]:
    for name, value, key in (
        ("startup_timeout", settings.startup_timeout_s, "setup_timeout"),
        ("request_timeout", settings.request_timeout_s, "request_timeout"),
    ):
        if (limit_s := cuts(value, key, place.spec, place.config)) is not None:
            yield f"{name}={value:g} is cut to runners.{key}, which is set to {format_duration(limit_s)}"


def _data(settings: Settings, folder: Path) -> Iterator[str]:
    if settings.data_mounts:
        yield (
            f"data_mounts: FAL_PERSISTENT_DIR is {folder} here; "
            "code that writes /data itself needs a link of that name to it"
        )
    if outside := outside_data(settings.data_mounts, folder):
        yield f"not used here: data_mounts={list(outside)}; only folders of /data are made"


def _secrets(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    if absent := [name for name in settings.secrets if name not in environ]:
        yield f"secrets that are not in the environment of falctl: {', '.join(absent)}"
