"""What a fal.App declares about itself, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from falctl.errors import ConfigError
from falctl.host.fal.retry_settings import read_retries, read_skips

_IGNORED: Final = ("machine_type", "regions", "requirements", "image")
_ELASTIC: Final = ("concurrency_buffer", "concurrency_buffer_perc", "scaling_delay")
_OF_THE_CLASS: Final = ("num_gpus", "machine_type", "requirements", "regions", "app_auth")
"""What the SDK leaves on the class."""


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
    max_concurrency: int | None
    name: str
    """What the app calls itself."""
    start_timeout_s: float | None
    retries: Mapping[str, int]
    """Further attempts by condition."""
    retry_skips: tuple[str, ...]
    data_mounts: tuple[str, ...]
    secrets: tuple[str, ...]
    ignored: tuple[str, ...]
    """As ``name=value``, for a person."""
    elastic: tuple[str, ...]
    """Likewise, what would scale it."""
    auth: str | None


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
        max_concurrency=int(most) if (most := number("max_concurrency")) is not None else None,
        name=str(getattr(fal_class, "app_name", None) or ""),
        start_timeout_s=number("request_start_timeout", zero=True) or None,
        retries=read_retries(declared.get("retry_config"), named=named),
        retry_skips=read_skips(declared.get("skip_retry_conditions"), named=named),
        data_mounts=tuple(map(str, declared.get("data_mounts") or ())),
        secrets=tuple(declared.get("secrets") or ()),
        ignored=_told(declared, _IGNORED),
        elastic=_told(declared, _ELASTIC),
        auth=declared.get("app_auth"),
    )


def check_cards(settings: Settings, *, cards: int, named: str, section: str = "runners") -> None:
    """
    Raise ConfigError when an app on GPUs wants more of them than each runner has; 0 *cards* is a CPU runner.

    *section* of the configuration says which cards those are.
    """
    wanted = settings.num_gpus or 1
    if 0 < cards < wanted:
        group = ", ".join(map(str, range(wanted)))
        msg = (
            f"APP {named!r} wants num_gpus = {wanted}, but a runner has {cards}; "
            f"give it a group of cards: {section}.gpus = [[{group}]]"
        )
        raise ConfigError(msg)


def _told(declared: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}={declared[name]!r}" for name in names if name in declared)


def _declared(fal_class: type[Any], base: type[Any]) -> dict[str, Any]:
    """
    Return what differs from the SDK's defaults.

    The SDK reads settings by name, so an endpoint called ``image`` or ``secrets`` looks like one to it; a value that
    can be called is none.
    """
    defaults: Mapping[str, Any] = base.host_kwargs
    given: dict[str, Any] = dict(fal_class.host_kwargs)
    for name in _OF_THE_CLASS:
        given[name] = given.get(name) or getattr(fal_class, name, None)
    return {
        name: value
        for name, value in given.items()
        if value is not None
        and not callable(value)
        and value != defaults.get(name, getattr(base, name, None))
    }
