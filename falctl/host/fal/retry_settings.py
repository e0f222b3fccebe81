"""What a fal.App declares of retries, in the forms that the SDK takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from falctl.core.retries import ATTEMPTS_MAX, CONDITIONS
from falctl.errors import ConfigError


def read_retries(given: Any, *, named: str) -> dict[str, int]:
    """
    Return the further attempts by condition that *given*, a ``retry_config``, allows; None gives none.

    Raises:
        ConfigError: it is neither the SDK's RetryConfig nor a table like ``{"timeout": {"retries": 1}}``.
    """
    if given is None:
        return {}
    table = given.to_dict() if hasattr(given, "to_dict") else given
    if not isinstance(table, Mapping) or not table or not set(table) <= set(CONDITIONS):
        raise _refusal(given, named)
    found = {}
    for condition, entry in table.items():
        count = entry.get("retries") if isinstance(entry, Mapping) and set(entry) == {"retries"} else None
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise _refusal(given, named)
        found[condition] = min(count, ATTEMPTS_MAX)
    return found


def read_skips(given: Any, *, named: str) -> tuple[str, ...]:
    """Return the conditions that *given*, a ``skip_retry_conditions``, names. Raises ConfigError for another."""
    if given is None:
        return ()
    if isinstance(given, str) or not set(given) <= set(CONDITIONS):
        msg = f"APP {named!r}: skip_retry_conditions is {given!r}; it may name {', '.join(CONDITIONS)}"
        raise ConfigError(msg)
    return tuple(given)


def _refusal(given: Any, named: str) -> ConfigError:
    return ConfigError(
        f"APP {named!r}: retry_config is {given!r}; write for example "
        f'{{"timeout": {{"retries": 1}}}}, of {", ".join(CONDITIONS)}'
    )
