"""Of several answers about its hints, a runner publishes the one that was asked for last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from falctl import App
from falctl.core.types import Hint
from falctl.host.hint_source import HintSource


class Changing(App):
    def __init__(self) -> None:
        self.now: Any = []

    def provide_hints(self) -> Iterable[str]:
        result: Iterable[str] = self.now
        return result


def test_an_answer_that_was_asked_for_earlier_never_replaces_a_later_one() -> None:
    app = Changing()
    source = HintSource(app)
    app.now = ["old"]
    slow = source.ask()
    app.now = ["new"]
    quick = source.ask()
    assert source.accept(quick)
    assert not source.accept(slow)
    assert source.known == ("new",)


def test_the_same_hints_again_are_no_change() -> None:
    app = Changing()
    source = HintSource(app)
    app.now = ["a"]
    assert source.accept(source.ask())
    assert not source.accept(source.ask())


def test_an_app_that_makes_up_bad_hints_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    app = Changing()
    source = HintSource(app)
    for n in range(1000):
        app.now = [f"{n},"]
        source.accept(source.ask())
    assert len(caplog.records) == 256


@pytest.mark.parametrize("name", ["模型", "a,b", "a\r\nX-Other: b", " a", ""])
def test_a_loaded_model_whose_name_fits_no_header_is_not_presumed_to_be_a_hint(name: str) -> None:
    source = HintSource(Changing())
    source.presume(loaded=Hint("b"), evicted=())
    source.presume(loaded=Hint(name), evicted=())
    assert source.known == ("b",)
    assert source.header() == b"b"


def test_an_app_without_provide_hints_gives_none_which_is_not_the_same_as_no_hint() -> None:
    assert HintSource(App()).known is None
    assert HintSource(App()).header() is None
    assert HintSource(Changing()).known == ()
    assert HintSource(Changing()).header() == b""


def test_an_exit_in_provide_hints_is_a_fault_of_the_app_not_the_end_of_the_runner() -> None:
    class Leaving(Changing):
        def provide_hints(self) -> Iterable[str]:
            raise SystemExit(3)

    asked = HintSource(Leaving()).ask()
    assert asked.cleaned.kept is None
    assert "raised SystemExit: 3" in asked.cleaned.complaints[0]
