"""Flags that take an amount with its unit, like ``--for 10m`` and ``--vram 48GiB``."""

from __future__ import annotations

from collections.abc import Callable

from falctl.errors import ConfigError


def amount_of(flag: str, text: str, parse: Callable[[object], object]) -> float:
    """
    Return what *parse*, a parser of `falctl.config_values`, makes of *text*; more than 0.

    Raises:
        ConfigError: it is none; names the flag.
    """
    try:
        amount = float(str(parse(text)))
    except ValueError as error:
        msg = f"{flag} {text}: {error}"
        raise ConfigError(msg) from None
    if amount <= 0:
        msg = f"{flag} {text}: write more than nothing"
        raise ConfigError(msg)
    return amount
