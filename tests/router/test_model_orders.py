"""Models are loaded, unloaded, pinned and preloaded by name, where it applies, and who asked hears what became of it."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from typing import Any

import pytest

from falctl import wire
from falctl.config import Config
from tests.router.client import Reply, ask
from tests.router.fake_host import PATIENCE_S, Gate
from tests.router.harness import ADMIN_TOKEN, Setup, log_of
from tests.router.model_host import add, models
from tests.wait import until

pytestmark = pytest.mark.process


def tell(setup: Setup, deed: str, model: str, **more: str | int) -> Reply:
    query = urllib.parse.urlencode({"model": model, **more})
    return ask(setup, path=f"/falctl/{deed}?{query}", headers={"x-falctl-token": ADMIN_TOKEN})


def load(setup: Setup, model: str, **more: str | int) -> list[dict[str, Any]]:
    reply = tell(setup, "load", model, **more)
    assert reply.status == 200, reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


def refused(reply: Reply, status: int) -> str:
    assert reply.status == status, reply.body
    detail: str = reply.json()["detail"]
    return detail


# --- load ----------------------------------------------------------------------------------------


def test_a_model_is_loaded_where_fewest_are_and_the_end_is_told() -> None:
    with models(("a",), ()) as (setup, hosts):
        first, *_, last = load(setup, "b")
        assert first == {"state": "waiting", "model": "b"}
        assert last == {
            "state": "loaded",
            "model": "b",
            "runner": 1,
            "load_s": 1.5,
            "from": "disk",
            "tier": "vram",
        }
        assert hosts[1].orders == [{"hint": "b", "evict": []}]
        assert load(setup, "b")[-1] == {"state": "there", "model": "b", "runner": 1}


def test_how_far_a_load_is_can_be_read_while_it_runs() -> None:
    done = threading.Event()
    with models(("x", "y"), loads_wait=done) as (setup, hosts):
        connection = http.client.HTTPConnection("127.0.0.1", setup.port, timeout=PATIENCE_S)
        connection.request("POST", "/falctl/load?model=b", headers={"x-falctl-token": ADMIN_TOKEN})
        answer = connection.getresponse()
        assert json.loads(answer.readline())["state"] == "waiting"
        told = json.loads(answer.readline())
        while told["fraction"] is None:
            told = json.loads(answer.readline())
        assert told == {"state": "loading", "model": "b", "runner": 0, "evict": ["x"], "fraction": 0.25}
        done.set()
        assert json.loads(answer.read().splitlines()[-1])["state"] == "loaded"
        connection.close()
        assert hosts[0].tiers == {"x": "ram", "y": "vram", "b": "vram"}


def test_a_load_goes_on_when_nobody_listens_any_more() -> None:
    done = threading.Event()
    with models((), loads_wait=done) as (setup, hosts):
        connection = http.client.HTTPConnection("127.0.0.1", setup.port, timeout=PATIENCE_S)
        connection.request("POST", "/falctl/load?model=b", headers={"x-falctl-token": ADMIN_TOKEN})
        connection.getresponse().readline()
        until(lambda: hosts[0].orders, within_s=PATIENCE_S, what="the load is asked for")
        connection.close()
        done.set()
        until(lambda: "b" in hosts[0].tiers, within_s=PATIENCE_S, what="the load ends")
        assert load(setup, "b")[-1]["state"] == "there"


def test_why_a_load_failed_is_told() -> None:
    with models(()) as (setup, _):
        last = load(setup, "nonsense")[-1]
        assert (last["state"], last["detail"]) == ("failed", "there is no nonsense")


def test_a_load_into_host_memory_takes_nothing_from_a_card() -> None:
    with models(("a", "b")) as (setup, hosts):
        last = load(setup, "c", tier="ram")[-1]
        assert last == {"state": "loaded", "model": "c", "runner": 0, "tier": "ram", "changed": True}
        assert hosts[0].orders == [{"do": "load", "model": "c", "tier": "ram"}]
        assert load(setup, "c", tier="ram", runner=0)[-1]["state"] == "there"
        hosts[0].refuses = 507, "no room"
        assert load(setup, "d", tier="ram")[-1]["detail"] == "runner 0: no room"


def test_an_app_without_a_cache_says_so() -> None:
    with models((), declares={"loads": False}) as (setup, _):
        assert "loads its models itself" in load(setup, "a")[-1]["detail"]
        assert "loads its models itself" in refused(tell(setup, "load", "a", tier="ram"), 503)


# --- unload, pin, unpin --------------------------------------------------------------------------


def test_a_model_is_unloaded_wherever_it_is_or_where_it_is_named() -> None:
    with models(("a",), ("a", "b"), ("a",)) as (setup, hosts):
        reply = tell(setup, "unload", "a", runner=1)
        assert reply.json() == {"model": "a", "runners": [{"runner": 1, "tier": None, "changed": True}]}
        assert [sorted(host.tiers) for host in hosts] == [["a"], ["b"], ["a"]]
        reply = tell(setup, "unload", "a", tier="ram")
        assert [row["runner"] for row in reply.json()["runners"]] == [0, 2]
        assert [host.tiers.get("a") for host in hosts] == ["ram", None, "ram"]
        assert refused(tell(setup, "unload", "a", tier="ram"), 404) == "no runner has a on its card"
        assert tell(setup, "unload", "a").status == 200
        assert refused(tell(setup, "unload", "a"), 404) == "no runner has a"


def test_every_host_that_refuses_is_told_with_its_reason() -> None:
    with models(("a",), ("a",)) as (setup, hosts):
        for host in hosts:
            host.refuses = 409, "a is in use"
        assert refused(tell(setup, "unload", "a"), 409) == "runner 0: a is in use; runner 1: a is in use"


def test_a_name_that_came_in_a_header_is_found_by_what_a_person_writes() -> None:
    with models(("café".encode().decode("latin-1"),)) as (setup, hosts):
        assert tell(setup, "unload", "café").status == 200
        assert hosts[0].tiers == {}


def test_a_pinned_model_is_no_victim_and_what_has_no_room_beside_it_is_refused() -> None:
    with models(("a", "b")) as (setup, hosts):
        assert tell(setup, "pin", "a").status == 200
        assert hosts[0].pinned == {"a"}
        reply = ask(setup, body=b"{}", headers={"x-fal-runner-hint": "c"})
        assert reply.status == 200
        assert hosts[0].orders[-1] == {"hint": "c", "evict": ["b"]}
        assert tell(setup, "pin", "c").status == 200
        reply = ask(setup, body=b"{}", headers={"x-fal-runner-hint": "d"})
        assert "beside those that are pinned: a, c; `falctl unpin` one" in refused(reply, 507)
        assert load(setup, "d")[-1]["detail"].endswith(
            "a (runner 0), c (runner 0); `falctl unpin` one of them"
        )
        assert tell(setup, "unpin", "c").status == 200
        assert refused(tell(setup, "unpin", "c"), 404) == "c is pinned on no runner"
        assert ask(setup, body=b"{}", headers={"x-fal-runner-hint": "d"}).status == 200


def test_pinning_where_it_is_not_loads_it_there_if_the_runner_is_named() -> None:
    with models((), ()) as (setup, hosts):
        assert refused(tell(setup, "pin", "a"), 404).endswith(
            "to have it loaded and pinned there: --runner N"
        )
        assert tell(setup, "pin", "a", runner=1).status == 200
        until(lambda: hosts[1].tiers == {"a": "vram"}, within_s=PATIENCE_S, what="it is loaded")
        assert hosts[1].pinned == {"a"}
        assert hosts[0].orders == []


def test_a_runner_that_comes_back_is_given_its_pins_again() -> None:
    with models(("a",)) as (setup, hosts):
        tell(setup, "pin", "a")
        setup.change(0, 1, "backoff")
        hosts[0].close()
        again = add(setup, 0, epoch=2)
        setup.change(0, 2, "ready")
        until(lambda: again.tiers == {"a": "vram"}, within_s=PATIENCE_S, what="it is loaded again")
        assert again.pinned == {"a"}


@pytest.mark.parametrize("named", [{}, {"runner": 0}])
def test_what_is_unpinned_while_its_runner_is_away_is_not_pinned_when_that_comes_back(
    named: dict[str, int],
) -> None:
    with models(("a",)) as (setup, hosts):
        tell(setup, "pin", "a")
        setup.change(0, 1, "backoff")
        hosts[0].close()
        until(
            lambda: setup.status()["runners"][0]["state"] == "backoff", within_s=PATIENCE_S, what="it is away"
        )
        reply = tell(setup, "unpin", "a", **named)
        assert reply.json() == {"model": "a", "runners": [{"runner": 0, "tier": None, "changed": True}]}
        assert tell(setup, "unpin", "a", **named).status == (503 if named else 404)
        again = add(setup, 0, epoch=2)
        setup.change(0, 2, "ready")
        setup.wait_up(0, 2)
        assert ask(setup, body=b"{}", headers={"x-fal-runner-hint": "b"}).status == 200
        assert again.orders == [{"hint": "b", "evict": []}]


def test_a_router_that_comes_back_knows_the_pins() -> None:
    with models(("a", "b")) as (setup, hosts):
        tell(setup, "pin", "a")
        assert setup.router is not None
        setup.router.kill()
        setup.start_router()
        assert ask(setup, body=b"{}", headers={"x-fal-runner-hint": "c"}).status == 200
        assert hosts[0].orders[-1] == {"hint": "c", "evict": ["b"]}
        setup.change(0, 1, "backoff")
        hosts[0].close()
        again = add(setup, 0, epoch=2)
        setup.change(0, 2, "ready")
        until(lambda: again.pinned == {"a"}, within_s=PATIENCE_S, what="it is pinned again")


def test_a_pinned_model_that_its_runner_dies_of_is_not_loaded_again_but_stays_pinned() -> None:
    never = threading.Event()
    with models((), loads_wait=never) as (setup, hosts):
        assert tell(setup, "pin", "a", runner=0).status == 200
        until(lambda: len(hosts[0].orders) == 2, within_s=PATIENCE_S, what="the load is asked for")
        setup.change(0, 1, "backoff")
        hosts[0].close()
        until(lambda: "runner 0 was lost while it loaded" in log_of(setup), within_s=PATIENCE_S, what="told")
        again = add(setup, 0, epoch=2)
        setup.change(0, 2, "ready")
        until(lambda: again.pinned == {"a"}, within_s=PATIENCE_S, what="it is pinned again")
        assert ask(setup, body=b"{}", headers={"x-fal-runner-hint": "b"}).status == 200
        assert [order for order in again.orders if "hint" in order] == [{"hint": "b", "evict": []}]


# --- preload -------------------------------------------------------------------------------------


def test_what_is_to_be_preloaded_is_spread_over_the_runners() -> None:
    config = {"cache": {"preload": ["a", "b", "c@1", "nonsense", "d@7"]}}
    with models((), (), config=config) as (setup, hosts):
        until(
            lambda: sorted(name for host in hosts for name in host.tiers) == ["a", "b", "c"],
            within_s=PATIENCE_S,
            what="all are loaded",
        )
        assert "c" in hosts[1].tiers
        assert {len(host.tiers) for host in hosts} == {1, 2}
        until(
            lambda: "there is no nonsense" in log_of(setup), within_s=PATIENCE_S, what="one line of the other"
        )
        assert log_of(setup).count("nonsense is not loaded ahead") == 1
        assert "d is not loaded ahead: cache.preload wants it on runner 7" in log_of(setup)
        assert ask(setup, body=b"{}").status == 200


def test_a_preload_takes_only_free_room() -> None:
    with models(("a", "b"), config={"cache": {"preload": ["c"]}}) as (setup, hosts):
        until(lambda: "free room" in log_of(setup), within_s=PATIENCE_S, what="one line")
        assert hosts[0].orders == []


def test_a_preload_whose_runner_dies_is_not_tried_again_at_once_but_after_a_reload() -> None:
    never = threading.Event()
    with models((), config={"cache": {"preload": ["a"]}}, loads_wait=never) as (setup, hosts):
        until(lambda: hosts[0].orders, within_s=PATIENCE_S, what="the load is asked for")
        setup.change(0, 1, "backoff")
        hosts[0].close()
        until(lambda: "runner 0 was lost while it loaded" in log_of(setup), within_s=PATIENCE_S, what="told")
        again = add(setup, 0, epoch=2)
        setup.change(0, 2, "ready")
        setup.wait_up(0, 2)
        assert ask(setup, body=b"{}", headers={"x-fal-runner-hint": "b"}).status == 200
        assert [order["hint"] for order in again.orders] == ["b"]
        assert "tried again in 60 s" in log_of(setup)
        reload(setup, cache={"preload": ["a"]})
        until(lambda: "a" in again.tiers, within_s=PATIENCE_S, what="it is loaded after all")


def test_a_reload_loads_what_it_adds_and_waits_no_more_for_what_it_leaves_out() -> None:
    wait = threading.Event()
    with models((), config={"cache": {"preload": ["a", "b@0"]}}, loads_wait=wait) as (setup, hosts):
        [host] = hosts
        until(lambda: host.orders, within_s=PATIENCE_S, what="the first load is asked for")
        [first] = [order["hint"] for order in host.orders]
        reload(setup, cache={"preload": [first if first == "a" else "b@0", "c"]})
        wait.set()
        until(lambda: set(host.tiers) == {first, "c"}, within_s=PATIENCE_S, what="what is named is loaded")
        reload(setup, cache={"preload": []})
        assert [order["hint"] for order in host.orders] == [first, "c"], (
            "nothing is loaded twice, nor unloaded"
        )


def reload(setup: Setup, **sections: Any) -> None:
    """Have the router take another configuration, and wait until it has."""
    assert setup.router is not None
    times = log_of(setup).count("router.reloaded")
    setup.router.send(wire.Reload(Config.model_validate(sections).model_dump(mode="json")))
    until(lambda: log_of(setup).count("router.reloaded") > times, within_s=PATIENCE_S, what="it is reloaded")


# --- who is meant --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("load", "name a model: /falctl/load?model=NAME"),
        ("load?model=a&runner=x", "runner='x': write its number, as `falctl status` shows it"),
        ("load?model=a&tier=disk", "tier='disk': write vram or ram"),
        ("unload?model=a&tier=vram", "tier='vram': write ram or disk"),
        ("pin?model=a&tier=ram", "tier='ram': that is for load and unload"),
        ("pin?model=a&gpu=1", "'gpu' is not known here; there are app, model, runner, tier"),
        ("pin?model=a&runner=9", "no runner 9; there are 0, 1"),
        ("load?model=a&app=c", "no app 'c'; there are one, two"),
        ("load?model=b", "there are several apps: say of which, app=one|two (on the command line --app)"),
        ("unload?model=a&app=one&runner=1", "runner 1 serves the app two, not one"),
    ],
)
def test_a_mistake_is_one_line_with_its_fix(two_apps: Setup, path: str, detail: str) -> None:
    reply = ask(two_apps, path=f"/falctl/{path}", headers={"x-falctl-token": ADMIN_TOKEN})
    assert reply.json()["detail"] == detail
    assert reply.status in (400, 404)


@pytest.fixture(scope="module")
def two_apps() -> Any:
    with models(("a",), (), apps={"one": [0], "two": [1]}) as (setup, _):
        yield setup


def test_of_several_apps_the_one_is_meant_that_has_the_model_or_is_named(two_apps: Setup) -> None:
    assert load(two_apps, "a")[-1] == {"state": "there", "model": "a", "runner": 0}
    assert load(two_apps, "b", app="two")[-1]["runner"] == 1
    assert load(two_apps, "e", runner=0)[-1]["runner"] == 0


def test_without_the_token_nothing_is_done(two_apps: Setup) -> None:
    for deed in ("load", "unload", "pin", "unpin"):
        assert ask(two_apps, path=f"/falctl/{deed}?model=a").status == 401


def test_a_runner_that_is_not_up_takes_no_orders() -> None:
    with models(("a",)) as (setup, _):
        setup.change(0, 1, "backoff")
        until(
            lambda: setup.status()["runners"][0]["state"] == "backoff",
            within_s=PATIENCE_S,
            what="it is known",
        )
        detail = refused(tell(setup, "pin", "a", runner=0), 503)
        assert detail == "runner 0 takes no orders now: it is backoff"


def test_a_load_waits_for_a_busy_runner() -> None:
    gate = Gate()
    with models(("a",)) as (setup, hosts):
        hosts[0].handler = gate
        busy = threading.Thread(target=ask, args=(setup,), kwargs={"headers": {"x-fal-runner-hint": "a"}})
        busy.start()
        until(lambda: hosts[0].executing, within_s=PATIENCE_S, what="it executes")
        loading = threading.Thread(target=load, args=(setup, "b"))
        loading.start()
        assert not hosts[0].orders
        gate.opened.set()
        busy.join(PATIENCE_S)
        loading.join(PATIENCE_S)
        assert hosts[0].orders == [{"hint": "b", "evict": []}]
