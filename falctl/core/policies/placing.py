"""Where a model goes that no request waits for: to the runner where room for it costs least, by `auto`'s figures."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from falctl.core.fleet import Runner
from falctl.core.policies.loads import delay_s
from falctl.core.policies.look import Look
from falctl.core.types import Hint, RunnerId

LAST: Final = sys.float_info.max
"""When it is due: after everybody who waits, so that the only copy of what they want is not its victim."""

Place: TypeAlias = tuple[RunnerId, tuple[Hint, ...]]
"""A runner, and what it evicts first."""


def place(
    look: Look, hint: Hint, runners: Iterable[Runner], *, evicting: bool
) -> Place | Literal["full"] | None:
    """
    Return on which of *runners*, which take loads and do not hold it, *hint* is to be loaded now; None: on none now.

    Of equal ones the one with the fewest models. Without *evicting* only free room counts; "full": none has any.
    """
    full = not evicting
    best: tuple[float, int, int, int] | None = None
    chosen: Place | None = None
    for runner in runners:
        found = look.room.victims(runner, hint, LAST)
        if found is None or (not evicting and (found[0] or look.state.avoids(hint, runner))):
            continue
        full = False
        if not runner.can_load:
            continue
        cost = look.worth.horizon_s * found[1] + look.knobs.balance * delay_s(look, hint, runner)
        crowd = len(look.state.fleet.held(runner)) + len(runner.loading)
        rank = (cost, len(found[0]), crowd, runner.runner)
        if best is None or rank < best:
            best, chosen = rank, (runner.runner, found[0])
    return "full" if full else chosen
