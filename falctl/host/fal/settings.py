"""What a fal.App declares about itself: what we honour, as values, and what we do not, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from falctl.errors import ConfigError

_IGNORED: Final = ("machine_type", "regions", "requirements", "image")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one app that count on this machine; None: not declared."""

    max_multiplexing: int
    request_timeout_s: float | None
    startup_timeout_s: float | None
    grace_s: float | None
    keep_alive_s: float | None
    min_concurrency: int
    """So many runners stay warm whatever `keep_alive_s` says."""
    num_gpus: int | None
    secrets: tuple[str, ...]
    ignored: tuple[str, ...]
    """As ``name=value``, for a person."""


def read_settings(fal_class: type[Any], base: type[Any], *, named: str) -> Settings:
    """
    Return what *fal_class*, a subclass of *base*, which is `fal.App`, declares.

    Raises:
        ConfigError: a value that cannot be honoured, in one line.
    """
    declared = _declared(fal_class, base)

    def number(name: str, *, zero: bool = False) -> float | None:
        value = declared.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not (value or zero):
            msg = f"APP {named!r}: {name} is {value!r}; it must be a number above 0"
            raise ConfigError(msg)
        return float(value)

    return Settings(
        max_multiplexing=int(number("max_multiplexing") or 1),
        request_timeout_s=number("request_timeout"),
        startup_timeout_s=number("startup_timeout"),
        grace_s=number("termination_grace_period_seconds"),
        keep_alive_s=number("keep_alive", zero=True),
        min_concurrency=int(number("min_concurrency", zero=True) or 0),
        num_gpus=int(count) if (count := number("num_gpus")) is not None else None,
        secrets=tuple(declared.get("secrets") or ()),
        ignored=tuple(f"{name}={declared[name]!r}" for name in _IGNORED if name in declared),
    )


def check_cards(settings: Settings, *, cards: int, named: str) -> None:
    """Raise ConfigError when an app on GPUs wants more of them than each runner has; 0 *cards* is a CPU runner."""
    wanted = settings.num_gpus or 1
    if 0 < cards < wanted:
        group = ", ".join(map(str, range(wanted)))
        msg = (
            f"APP {named!r} wants num_gpus = {wanted}, but a runner has {cards}; "
            f"give it a group of cards: runners.gpus = [[{group}]]"
        )
        raise ConfigError(msg)


def notes(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Return what a person should hear of *settings*, each in one line."""
    told = []
    if settings.ignored:
        told.append(
            f"not used here: {', '.join(settings.ignored)}; the app runs in this Python, on the cards of runners.gpus"
        )
    if absent := [name for name in settings.secrets if name not in environ]:
        told.append(f"secrets that are not in the environment of falctl: {', '.join(absent)}")
    return told


def _declared(fal_class: type[Any], base: type[Any]) -> dict[str, Any]:
    """
    Return what differs from the SDK's defaults.

    The SDK reads settings by name, so an endpoint called ``image`` or ``secrets`` looks like one to it; a value that
    can be called is none.
    """
    defaults: Mapping[str, Any] = base.host_kwargs
    given: dict[str, Any] = dict(fal_class.host_kwargs)
    for name in ("num_gpus", "machine_type", "requirements", "regions"):
        given[name] = given.get(name) or getattr(fal_class, name, None)
    return {
        name: value
        for name, value in given.items()
        if value is not None
        and not callable(value)
        and value != defaults.get(name, getattr(base, name, None))
    }
