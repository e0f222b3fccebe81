"""What the headers of fal's protocol say of retries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from falctl.core.retries import ATTEMPTS_MAX, CONDITIONS, DEFAULT_RULES, Condition, RetryRules
from falctl.errors import BadRequestError

_NO_RETRY: Final = b"x-fal-no-retry"
_RETRY_CONFIG: Final = b"x-fal-retry-config"
_NEEDS_RETRY: Final = b"x-fal-needs-retry"
_YES: Final = frozenset({b"1", b"true", b"yes"})


def retry_rules(head: Mapping[bytes, bytes]) -> RetryRules:
    """
    Return what a request asks for. As fal does, a condition that is said in another form is ignored.

    Raises:
        BadRequestError: X-Fal-Retry-Config is no JSON object.
    """
    never = head.get(_NO_RETRY, b"").strip().lower() in _YES
    given = head.get(_RETRY_CONFIG)
    if given is None:
        return RetryRules(never=True) if never else DEFAULT_RULES
    try:
        table = json.loads(given)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        msg = 'X-Fal-Retry-Config is no JSON object; write for example {"timeout": {"retries": 0}}'
        raise BadRequestError(msg)
    budgets = {condition: _retries(table.get(condition)) for condition in CONDITIONS}
    asked: dict[Condition, int] = {c: n for c, n in budgets.items() if n is not None}
    return RetryRules(never=never, asked=asked)


def needs_retry(headers: Iterable[tuple[bytes, bytes]]) -> bool | None:
    """Return what an app's answer says of itself; None: nothing that is known."""
    for name, value in headers:
        if name.lower() == _NEEDS_RETRY and value.strip() in (b"0", b"1"):
            return value.strip() == b"1"
    return None


def _retries(entry: object) -> int | None:
    count = entry.get("retries") if isinstance(entry, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        return None
    return min(count, ATTEMPTS_MAX)
