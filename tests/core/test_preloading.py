"""How often, and when, a model is loaded ahead again whose runner died of it."""

from __future__ import annotations

from falctl.core.preloading import PAUSES_S, Deaths

MODEL, OTHER = ("app", "a"), ("app", "b")


def test_a_model_is_left_alone_for_longer_after_each_death_and_then_for_good() -> None:
    deaths, now = Deaths(), 100.0
    assert not deaths.forbid(MODEL, now=now)
    for pause_s in PAUSES_S:
        assert deaths.note(MODEL, now=now) == pause_s
        assert deaths.forbid(MODEL, now=now + pause_s - 1)
        assert not deaths.forbid(OTHER, now=now)
        now += pause_s
        assert not deaths.forbid(MODEL, now=now)
    assert list(PAUSES_S) == sorted(PAUSES_S)
    assert deaths.note(MODEL, now=now) is None
    assert deaths.forbid(MODEL, now=now + 1e9)


def test_what_was_loaded_after_all_begins_anew() -> None:
    deaths = Deaths()
    deaths.note(MODEL, now=0.0)
    deaths.forget(MODEL)
    assert not deaths.forbid(MODEL, now=0.0)
    assert deaths.note(MODEL, now=0.0) == PAUSES_S[0]
    deaths.forget(OTHER)
