"""Who has not looked for a while begins anew."""

from __future__ import annotations

from falctl.core.lookout import GAP_S, Lookout


def test_it_begins_with_the_first_look_and_anew_after_each_gap() -> None:
    lookout = Lookout()
    for now, since_at in (
        (100.0, 100.0),
        (100.25, 100.0),
        (100.25 + GAP_S, 100.0),
        (200.0, 200.0),
        (200.25, 200.0),
    ):
        lookout.look(now=now)
        assert lookout.since_at == since_at
