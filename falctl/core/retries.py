"""
When a queued job is tried again: fal's rules.

An attempt fails under one of three conditions, each with a budget of its own: a *server error* (the runner answered
503 or 504, or went away), a *timeout* (it ran into `runners.request_timeout`), a *connection error*. Who decides, in
this order: the answer itself (X-Fal-Needs-Retry), the request (X-Fal-No-Retry, X-Fal-Retry-Config), the app
(``skip_retry_conditions``, ``retry_config``), the default, which is to retry. `ATTEMPTS_MAX` bounds them all.
https://fal.ai/docs/documentation/serverless/reliability/retries
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Condition = Literal["server_error", "timeout", "connection_error"]

CONDITIONS: Final[tuple[Condition, ...]] = ("server_error", "timeout", "connection_error")

ATTEMPTS_MAX: Final = 10
"""fal's own bound, the first attempt included."""

PAUSE_FIRST_S: Final = 0.25
PAUSE_MAX_S: Final = 30.0
"""An attempt that fails at once must not be followed at once by nine more: what broke may need seconds to come back."""


@dataclass(frozen=True, slots=True)
class AppRetries:
    """What an app says of attempts of its requests; budgets count those after the first, a missing one is the default."""

    budgets: Mapping[Condition, int] = field(default_factory=dict)
    """Its ``retry_config``."""
    skips: frozenset[Condition] = frozenset()
    """Its ``skip_retry_conditions``."""


SILENT: Final = AppRetries()
"""An app that says nothing, or of which nothing is known yet."""


@dataclass(frozen=True, slots=True)
class RetryRules:
    """What a request says, in the same way."""

    never: bool = False
    """X-Fal-No-Retry."""
    asked: Mapping[Condition, int] = field(default_factory=dict)
    """X-Fal-Retry-Config."""

    def budget(self, condition: Condition, app: AppRetries = SILENT) -> int:
        """Return how many attempts of a request of *app* that end by *condition* are followed by another."""
        if self.never:
            return 0
        if condition in self.asked:
            return self.asked[condition]
        if condition in app.skips:
            return 0
        return app.budgets.get(condition, ATTEMPTS_MAX - 1)


DEFAULT_RULES: Final = RetryRules()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, and with it the job if it is not retried. The answer's bytes are kept elsewhere."""

    status: int
    error_type: str = ""
    """fal's name of what went wrong; empty if it went well or the app itself answered."""
    condition: Condition | None = None
    """Why there was no answer; None: there was one, and ``status`` tells."""
    needs_retry: bool | None = None
    """X-Fal-Needs-Retry of the answer."""

    @property
    def failed_by(self) -> Condition | None:
        """Return the condition under which it failed; None: by none that is retried by default."""
        if self.condition is None and self.status in (503, 504):
            return "server_error"
        return self.condition


@dataclass(frozen=True, slots=True)
class Tried:
    """What a job has behind it."""

    attempts: int
    """How many it has had, the one that has just ended included."""
    failures: Mapping[Condition, int]
    """How many of them, without that one, each condition ended."""


def retries(outcome: Outcome, tried: Tried, rules: RetryRules, app: AppRetries = SILENT) -> bool:
    """Return whether a job of *app* whose attempt ended with *outcome* is tried again."""
    if tried.attempts >= ATTEMPTS_MAX:
        return False
    if outcome.needs_retry is not None and (outcome.status >= 500 or outcome.status == 429):
        return outcome.needs_retry and not rules.never
    condition = outcome.failed_by
    return condition is not None and tried.failures.get(condition, 0) < rules.budget(condition, app)


def pause_s(attempts: int) -> float:
    """Return how long a job rests after its attempt number *attempts*, from 1, has failed."""
    return float(min(PAUSE_FIRST_S * 2 ** (attempts - 1), PAUSE_MAX_S))
