"""What is told of a job that did not end well: the same words in its status, its result and its webhook."""

from __future__ import annotations

from falctl.core.jobs import CANCELLED
from falctl.core.retries import Outcome


def detail_of(outcome: Outcome) -> str:
    """Return in words what happened."""
    if outcome == CANCELLED:
        return "the request was cancelled"
    return outcome.error_type.replace("_", " ") or f"Invalid status code: {outcome.status}"


def problem_of(outcome: Outcome) -> dict[str, str]:
    """Return the result of a job that no app has answered, in fal's form."""
    return {"detail": detail_of(outcome), "error_type": outcome.error_type}
