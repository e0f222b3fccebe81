"""What hosts tell of tiers and bytes reaches the scheduler, and comes back in receipts and stories."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

import pytest
from starlette.types import Send

from falctl import wire
from falctl.board.rows import ModelRow, RunnerRow
from falctl.core.sources import Stock
from falctl.core.types import Epoch, Hint, RunnerId
from falctl.router.runners.news import released, stock_of
from tests.router.client import Later, ask
from tests.router.fake_host import PATIENCE_S, FakeHost, Seen, answer
from tests.router.harness import Setup, serving, waits
from tests.router.queue_calls import result, submit
from tests.wait import until

HINT = "x-fal-runner-hint"
COUNTS: dict[str, Any] = {"loads": True, "overlaps": True, "vram_bytes": 24 << 30, "run_bytes": 64 << 30}


@pytest.fixture
def three() -> Iterator[Setup]:
    with serving(runners=3, declares=COUNTS) as setup:
        yield setup


def model(name: str, tier: str, vram: int = 0, ram: int = 0, **fields: Any) -> ModelRow:
    return ModelRow(name, "ready", 1.0, tier=tier, vram_bytes=vram, ram_bytes=ram, **fields)  # type: ignore[arg-type]


def in_ram(setup: Setup, runner: int, name: str) -> None:
    host = setup.hosts[runner]
    host.models = (model(name, "ram", ram=7 << 30),)
    host.tell(wire.HintsChanged(host.epoch))


def wanting(setup: Setup, name: str) -> Later:
    later = Later()
    later.ask(setup, headers={HINT: name})
    return later


def test_a_model_is_loaded_by_the_runner_that_has_it_in_host_memory(three: Setup) -> None:
    for runner in (2, 0, 1):
        name = f"m{runner}"
        in_ram(three, runner, name)
        later = wanting(three, name)
        host = three.hosts[runner]
        until(host.ordered.__len__, within_s=PATIENCE_S, what=f"{name} is loaded by runner {runner}")
        assert host.ordered == [{"hint": name, "evict": []}]
        host.hints, host.models = (name,), (model(name, "vram", 7 << 30, 7 << 30),)
        host.tell(wire.LoadEnded(host.epoch, name, ok=True, load_s=0.3, tier="ram"))
        [reply] = later.all()
        assert (reply.value("x-falctl-runner"), reply.value("x-falctl-cache")) == (str(runner), "ram")
        assert ';desc="ram"' in (reply.value("server-timing") or "")
        story = ask(three, "GET", f"/falctl/explain/{reply.value('x-fal-request-id')}").json()
        [load] = story["loads"]
        assert (load["tier"], load["load_s"]) == ("ram", 0.3)
        assert {c["runner"]: c["source"] for c in load["candidates"]}[runner] == "ram"


def test_what_fits_no_card_is_sent_to_a_runner_all_the_same_if_it_could_be_run(three: Setup) -> None:
    for host in three.hosts.values():
        host.models = (
            model("large", "ram", ram=40 << 30, size_bytes=40 << 30),
            model("vast", "ram", ram=90 << 30, size_bytes=90 << 30),
        )
        host.tell(wire.HintsChanged(host.epoch))
    refusal = ask(three, headers={HINT: "vast"})
    assert (refusal.status, refusal.value("x-fal-error-type")) == (507, "model_too_large")
    later = wanting(three, "large")
    until(lambda: any(h.ordered for h in three.hosts.values()), within_s=PATIENCE_S, what="a load of large")
    [host] = [h for h in three.hosts.values() if h.ordered]
    host.hints = ("large",)
    host.tell(wire.LoadEnded(host.epoch, "large", ok=True, load_s=1.0))
    assert [reply.status for reply in later.all()] == [200]


def test_a_model_goes_where_its_base_is_if_the_app_says_what_joins_them() -> None:
    for joint, runner in (("+", 2), ("", 0)):
        with serving(runners=3, declares={"joint": joint}) as setup:
            setup.hosts[2].set_hints("base", "other")
            until(
                lambda: "base" in setup.status()["runners"][2]["hints"],
                within_s=PATIENCE_S,
                what="hints of runner 2",
            )
            assert ask(setup, headers={HINT: "base+lora"}).value("x-falctl-runner") == str(runner)


def asked(setup: Setup, *, but: Collection[int]) -> FakeHost:
    """Return the next host that has been asked for a load, of those *but* which there are."""

    def those() -> list[FakeHost]:
        return [host for host in setup.hosts.values() if host.ordered and host.runner not in but]

    [host] = until(those, within_s=PATIENCE_S, what="a load is asked for")
    return host


def test_a_507_of_one_runner_is_no_answer_while_another_may_have_room(three: Setup) -> None:
    failed: list[int] = []
    first, second = wanting(three, "m"), wanting(three, "m")
    for _ in three.hosts:
        host = asked(three, but=failed)
        assert not first.replies + second.replies
        failed.append(host.runner)
        said = f"runner {host.runner} has no room"
        told: dict[str, Any] = {
            "error": said,
            "status": 507,
            "error_type": "model_too_large",
            "least_bytes": 20 << 30,
        }
        host.tell(wire.LoadEnded(host.epoch, "m", ok=False, load_s=0.0, **told))
    assert sorted(failed) == [0, 1, 2]
    for reply in (*first.all(), *second.all(), ask(three, headers={HINT: "m"})):
        assert (reply.status, reply.value("x-fal-error-type")) == (507, "model_too_large")
        assert reply.json()["detail"] == said
    assert all(len(host.ordered) == 1 and not host.seen for host in three.hosts.values())
    why = ask(three, "GET", "/falctl/why?model=m").json()
    assert "would be refused: no runner had room for it" in why["conclusion"]
    assert all(row["refused_s"] >= 0 for row in why["runners"])


def test_a_507_of_an_execution_sends_the_next_one_elsewhere() -> None:
    with serving(runners=3) as setup:

        async def too_large(seen: Seen, send: Send) -> None:
            host = next(h for h in setup.hosts.values() if seen in h.seen)
            host.executing.remove(seen.request)
            host.put_row()
            host._emit(wire.Released(host.epoch, seen.request, least_bytes=20 << 30))
            await answer(send, b"no room", status=507)

        for host in setup.hosts.values():
            host.handler = too_large
        replies = [ask(setup, headers={HINT: "m"}) for _ in range(4)]
        assert [reply.status for reply in replies] == [507] * 4
        assert {reply.value("x-falctl-runner") for reply in replies[:3]} == {"0", "1", "2"}
        assert replies[3].value("x-falctl-origin") == "router", "nobody is left to ask"


def test_all_who_wait_for_a_model_that_there_is_not_are_answered_by_the_load_that_failed(
    three: Setup,
) -> None:
    laters = [wanting(three, "nonsense") for _ in range(3)]
    waits(three, 3)
    host = asked(three, but=[])
    told: dict[str, Any] = {"error": "there is no nonsense", "status": 404, "error_type": "model_not_allowed"}
    host.tell(wire.LoadEnded(host.epoch, "nonsense", ok=False, load_s=0.0, **told))
    for reply in [reply for later in laters for reply in later.all()]:
        assert (reply.status, reply.value("x-fal-error-type")) == (404, "model_not_allowed")
        assert reply.json() == {"detail": "there is no nonsense", "error_type": "model_not_allowed"}
    assert not any(h.seen for h in three.hosts.values())


WITH_LORA = b'{"model": "base", "loras": [{"path": "lora.safetensors", "scale": 0.5}]}'


@pytest.mark.parametrize(("joint", "runner", "hint"), [("+", "1", "base+lora"), ("", "0", "base")])
def test_a_body_with_loras_goes_to_who_holds_them_directly_and_queued(
    joint: str, runner: str, hint: str
) -> None:
    with serving(runners=2, declares={"joint": joint}) as setup:
        setup.hosts[0].set_hints("base")
        setup.hosts[1].set_hints("base+lora")
        until(
            lambda: [r["hints"] for r in setup.status()["runners"]] == [["base"], ["base+lora"]],
            within_s=PATIENCE_S,
            what="hints of both",
        )
        assert ask(setup, body=WITH_LORA).value("x-falctl-runner") == runner
        job = submit(setup, body=WITH_LORA)["request_id"]
        assert result(setup, job).value("x-falctl-runner") == runner
        for seen in setup.hosts[int(runner)].seen:
            assert seen.values(wire.H_WANTED) == [json.dumps(hint).encode()]
        assert ask(setup, "GET", f"/falctl/explain/{job}").json()["hint"] == hint


def test_bodies_with_loras_that_came_before_any_runner_are_known_by_the_name_that_it_joins() -> None:
    setup = Setup()
    try:
        host = setup.add_host(hints=("base", "base+lora"), declares={"joint": "+"})
        setup.put_life(0, 1, "starting")
        setup.start_router(wait_for_runners=False)
        job = submit(setup, body=WITH_LORA)["request_id"]
        later = Later()
        later.ask(setup, body=WITH_LORA)
        waits(setup, 2)
        setup.change(0, 1, "ready")
        [reply] = later.all()
        assert (reply.status, result(setup, job).status) == (200, 200)
        assert [seen.values(wire.H_WANTED) for seen in host.seen] == [[b'"base+lora"']] * 2
        for request in (job, reply.value("x-fal-request-id")):
            assert ask(setup, "GET", f"/falctl/explain/{request}").json()["hint"] == "base+lora"
    finally:
        setup.close()


# --- what a row says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "in_ram", "size"),
    [
        (model("m", "vram", 7, 7, size_bytes=7), True, 7),
        (model("m", "vram", 7, 6, size_bytes=7), False, 7),
        (model("m", "vram", 0, 0), False, None),
        (model("m", "ram", 2, 7), True, None),
        (model("m", "disk", 2, 3, size_bytes=9), False, 9),
    ],
)
def test_a_model_is_in_host_memory_if_that_has_all_that_the_card_lacks_or_would_lack(
    row: ModelRow, in_ram: bool, size: int | None
) -> None:
    stock = stock_of(RunnerRow(Epoch(1), 1, (), models=(row,)))
    assert stock == Stock(
        frozenset({Hint("m")}) if in_ram else frozenset(), {} if size is None else {Hint("m"): size}
    )


@pytest.mark.parametrize(
    ("told", "tier"), [("ram", "ram"), ("disk", "disk"), ("join", None), ("tape", "disk")]
)
def test_a_tier_that_nobody_knows_counts_as_the_dearest(told: str, tier: str | None) -> None:
    assert released(RunnerId(0), wire.Released(1, "q", 1.0, 1.0, told)).tier == tier
