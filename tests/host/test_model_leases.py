"""A model that an app takes by index is its request's until that ends; an idle one leaves when its time is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from falctl.wire import Hello
from tests.host.harness import STEP_S, Host
from tests.wait import until

pytestmark = pytest.mark.process

APP = "tests/host/probe_app.py"


@pytest.fixture(scope="module")
def cached() -> Iterator[Host]:
    with Host(f"{APP}::Cached") as host:
        yield host


def test_a_model_by_index_is_leased_until_the_answer_is_complete(cached: Host) -> None:
    assert cached.post("/index", {"model": "m"}).json == {"model": "M", "leases": {"m": 1}}
    assert cached.post("/leases").json == {"m": 0}
    assert cached.post("/index-stream", {"model": "m"}).body == b"M 1\nM 1\n"
    assert cached.post("/leases").json == {"m": 0}


def test_a_dict_of_models_ports_by_one_line() -> None:
    with Host(f"{APP}::Ported", config={"cache": {"max_models": 2}}) as host:
        with host.events() as events:
            assert not events.until(Hello).loads, "nobody but the app can load"
        cold = host.post("/", {"model": "a"}, {"x-falctl-hint": '"a"'})
        warm = host.post("/", {"model": "a"}, {"x-falctl-hint": '"a"'})
        assert [cold.json["leases"], warm.json["leases"]] == [{"a": 1}, {"a": 1}]
        assert [cold.timings["cache"], warm.timings["cache"]] == ["disk", "hit"]
        for model in "bc":
            host.post("/", {"model": model})
        assert host.row.hints == ("c", "b")
        assert host.post("/", {"model": "c"}).json == {
            "model": "C",
            "leases": {"c": 1, "b": 0},
            "unloaded": ["A"],
        }


def test_an_idle_model_leaves_by_itself_and_the_hints_with_it() -> None:
    keep = {"cache": {"keep_alive": 0.2, "keep_alive_by": {"stays": -1, "goes": 0}}}
    with Host(f"{APP}::Cached", config=keep) as host:
        held = host.post("/lease", {"model": "asked"}, {"x-falctl-keep-alive": "0"})
        assert held.json == "ASKED"
        assert "asked" not in (host.row.hints or ()), "its request said so"
        for model in ("stays", "usual", "goes"):
            assert host.post("/lease", {"model": model}).json == model.upper()
        assert "goes" not in (host.row.hints or ())
        until(lambda: host.row.hints == ("stays",), within_s=STEP_S, what="the other has left")
        assert [m.name for m in host.row.models] == ["stays"]
