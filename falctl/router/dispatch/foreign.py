"""A policy of the user's in office: its first mistake is logged and ends its term, not the router."""

from __future__ import annotations

import logging

from falctl.core.policies import Move, Policy, State
from falctl.core.policies.legal import fault

log = logging.getLogger(__name__)


class Foreign:
    """Asks *policy* until it raises or chooses what cannot be, then *deputy* for good."""

    def __init__(self, name: str, policy: Policy, *, deputy: Policy) -> None:
        self._name = name
        self._policy = policy
        self._deputy = deputy

    def choose(self, state: State, *, now: float) -> Move | None:
        """Return the next move."""
        if self._policy is self._deputy:
            return self._deputy.choose(state, now=now)
        try:
            move = self._policy.choose(state, now=now)
            wrong = fault(state, move)
        except Exception:  # foreign code may raise anything
            log.exception("policy.raised policy=%s", self._name)
            wrong = "it raised"
        if wrong is None:
            return move
        deputy = type(self._deputy).__name__
        log.error("policy.failed policy=%s: %s; %s decides from now on", self._name, wrong, deputy)
        self._policy = self._deputy
        return self._deputy.choose(state, now=now)
