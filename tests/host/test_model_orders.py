"""What a person wants of a model on one runner: in host memory, out, pinned; and what is in the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from falctl.wire import MODELS_PATH, LoadEnded
from tests.host.harness import Host, Reply
from tests.wait import until

pytestmark = pytest.mark.process

CONFIG = {"simulated": {"load_s": 0.02, "exec_s": 0.01}, "cache": {"max_models": 2}}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host("runners.simulated:SimulatedModels", config=CONFIG) as host:
        yield host


def order(host: Host, do: str, model: str, **more: str) -> Reply:
    return host.post(MODELS_PATH, {"do": do, "model": model, **more})


def models(host: Host) -> dict[str, bool]:
    """Return what the board says it has, and whether that is pinned."""
    return {model.name: model.pinned for model in host.row.models}


def test_a_model_that_is_unloaded_is_gone_from_the_board_before_the_answer(host: Host) -> None:
    host.post("/", {"model": "a"})
    assert "a" in models(host)
    reply = order(host, "unload", "a")
    assert (reply.status, reply.json) == (200, {"tier": None, "changed": True})
    assert "a" not in models(host)
    assert "a" not in (host.row.hints or ())
    again = order(host, "unload", "a")
    assert (again.status, again.json["detail"]) == (404, "a is not here")


def test_a_pin_is_on_the_board_and_holds(host: Host) -> None:
    host.post("/", {"model": "p"})
    assert order(host, "pin", "p").json == {"tier": "vram", "changed": True}
    assert order(host, "pin", "p").json == {"tier": "vram", "changed": False}
    assert models(host)["p"] is True
    reply = order(host, "unload", "p")
    assert (reply.status, reply.json["detail"]) == (409, "p is pinned; `falctl unpin` lets it leave")
    for other in ("x", "y", "z"):
        assert host.post("/", {"model": other}).status == 200
    assert next(iter(models(host))) == "p", (
        "what is pinned is told first: a row that is too long loses its last models"
    )
    assert order(host, "unpin", "p").json == {"tier": "vram", "changed": True}
    assert order(host, "unpin", "p").json == {"tier": "vram", "changed": False}
    assert order(host, "unload", "p").status == 200


def test_a_cache_that_its_app_fills_itself_is_pinned_and_emptied_by_hand_too() -> None:
    with Host("tests/host/probe_app.py::Ported", config={"cache": {"max_models": 2}}) as host:
        for model in ("a", "b"):
            host.post("/", {"model": model})
        assert order(host, "pin", "a").json == {"tier": "vram", "changed": True}
        host.post("/", {"model": "c"})
        assert models(host) == {"a": True, "c": False}, "b left for it"
        assert order(host, "unload", "a").status == 409
        assert order(host, "unload", "c").json == {"tier": None, "changed": True}
        assert host.post("/", {"model": "a"}).json["unloaded"] == ["B", "C"]
        reply = order(host, "load", "d", tier="ram")
        assert (reply.status, reply.json["detail"]) == (
            400,
            "this app loads its models itself: it has no model cache of ours with a load=, or more than one",
        )


def test_an_unload_waits_for_what_executes(host: Host) -> None:
    busy = host.later("/", {"model": "long", "exec_s": 0.5})
    until(lambda: host.row.executing, within_s=30, what="it executes")
    assert order(host, "unload", "long").json == {"tier": None, "changed": True}
    assert busy.reply().status == 200


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"do": "eat", "model": "a"},
        {"do": "pin"},
        {"do": "unload", "model": "a", "tier": "vram"},
        {"do": "load", "model": "a"},
    ],
)
def test_what_is_no_order_is_refused(host: Host, body: object) -> None:
    reply = host.post(MODELS_PATH, body)
    assert reply.status == 400
    assert reply.json["detail"].startswith("an order is")


def test_an_app_with_no_cache_takes_no_orders() -> None:
    with Host("runners.echo:Echo") as host:
        reply = order(host, "pin", "a")
        assert reply.status == 400
        assert reply.json["detail"].startswith("this app keeps its models itself")


def test_why_a_load_failed_is_told_and_a_wrong_name_is_not_pinned() -> None:
    with Host("runners.diffusion:AnyModelRunner") as host, host.events() as events:
        events.next()
        host.post("/falctl/load", {"hint": "nonsense", "evict": []})
        ended = events.until(LoadEnded)
        assert not ended.ok
        assert "nonsense" in ended.error
        assert order(host, "pin", "nonsense").status == 404


def test_a_request_says_how_long_its_model_may_idle() -> None:
    prompt = {"model": "digits-ink", "prompt": "one", "num_inference_steps": 1}
    with Host("runners.diffusion:AnyModelRunner") as host:
        assert host.post("/", prompt).status == 200
        assert host.row.models[0].keep_until is None
        assert host.post("/", {**prompt, "keep_alive": "1h"}).status == 200
        (model,) = host.row.models
        assert model.keep_until == pytest.approx(model.used_at + 3600)
        assert host.post("/", {**prompt, "keep_alive": -1}).status == 200
        assert host.row.models[0].keep_until is None
        assert host.post("/", {**prompt, "keep_alive": 0}).status == 200
        until(lambda: host.row.models[0].tier != "vram", within_s=30, what="it leaves the card")
        refused = host.post("/", {**prompt, "keep_alive": "a while"})
        assert refused.status == 400
        assert refused.json["detail"].startswith(
            "keep_alive = 'a while' is no time to keep a model; write 0,"
        )
