"""Load jobs: a model is loaded because the router says so, beside a request where the app allows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from falctl.wire import LOAD_PATH, Hello, LoadEnded, Released
from tests.host.harness import Host

pytestmark = pytest.mark.process

CONFIG = {"simulated": {"load_s": 0.05, "exec_s": 0.01}, "cache": {"max_models": 2}}


@pytest.fixture
def simulated() -> Iterator[Host]:
    with Host("runners.simulated:SimulatedModels", config=CONFIG) as host:
        yield host


def draws(model: str) -> dict[str, object]:
    return {"model": model, "prompt": "seven", "num_inference_steps": 1, "seed": 7}


def order(host: Host, hint: str, *evict: str) -> int:
    status: int = host.post(LOAD_PATH, {"hint": hint, "evict": list(evict)}).status
    return status


def test_a_load_job_makes_the_runner_warm_before_any_request(simulated: Host) -> None:
    with simulated.events() as events:
        hello = events.until(Hello)
        assert (hello.loads, hello.overlaps, hello.models_max, hello.loading) == (True, True, 2, [])
        assert order(simulated, "m0") == 202
        ended = events.until(LoadEnded)
        assert (ended.hint, ended.ok) == ("m0", True)
        assert ended.load_s >= 0.05
    assert simulated.row.hints == ("m0",)
    assert simulated.row.loads == 1
    assert simulated.post("/", {"model": "m0"}).json["loaded"] is False


def test_a_load_job_costs_what_the_name_of_its_model_says(simulated: Host) -> None:
    with simulated.events() as events:
        events.next()
        order(simulated, "slow@0.4")
        assert events.until(LoadEnded).load_s >= 0.4


def test_the_router_says_what_leaves(simulated: Host) -> None:
    for model in ("a", "b"):
        simulated.post("/", {"model": model})
    with simulated.events() as events:
        events.next()
        order(simulated, "c", "b")
        events.until(LoadEnded)
    assert set(simulated.row.hints or ()) == {"a", "c"}


def test_a_release_tells_execution_and_load_apart(simulated: Host) -> None:
    with simulated.events() as events:
        events.next()
        simulated.post("/", {"model": "m", "load_s": 1.5, "exec_s": 0.05})
        cold = events.until(Released)
        simulated.post("/", {"model": "m", "exec_s": 0.05})
        warm = events.until(Released)
        simulated.post("/", {"nonsense": 1})
        refused = events.until(Released)
    assert cold.exec_s is not None
    assert cold.load_s is not None
    assert 0.05 <= cold.exec_s < 1.5 <= cold.load_s
    assert warm.load_s == 0.0
    assert (refused.exec_s, refused.load_s) == (None, None)


def test_a_load_that_fails_is_told_and_leaves_nothing() -> None:
    with Host("runners.diffusion:AnyModelRunner") as host, host.events() as events:
        hello = events.until(Hello)
        assert (hello.loads, hello.overlaps) == (True, False)
        assert order(host, "no-such-model") == 202
        ended = events.until(LoadEnded)
        assert (ended.ok, ended.status, ended.error_type) == (False, 404, "model_not_allowed")
        assert "no-such-model" in ended.error
        assert ended.least_bytes == 0
        assert host.row.models == ()
        assert order(host, "digits-ink") == 202
        assert events.until(LoadEnded).ok is True
        assert host.row.hints == ("digits-ink",)


def test_a_model_that_has_no_room_is_told_with_what_it_takes_by_its_load_and_by_its_request() -> None:
    with Host("runners.diffusion:AnyModelRunner", spec={"cpu_bytes": 4096}) as host, host.events() as events:
        order(host, "digits-ink")
        ended = events.until(LoadEnded)
        assert (ended.ok, ended.status, ended.error_type) == (False, 507, "model_too_large")
        assert ended.least_bytes > 4096
        reply = host.post("/", draws("digits-ink"), headers={"X-Fal-Runner-Hint": "digits-ink"})
        assert (reply.status, reply.json["detail"]) == (507, ended.error)
        assert events.until(Released).least_bytes == ended.least_bytes
        reply = host.post("/", draws("digits-ink"), headers={"X-Fal-Runner-Hint": "digits-paper"})
        assert reply.status == 507
        assert events.until(Released).least_bytes == 0, (
            "that says nothing of the model that others want by this hint"
        )


@pytest.mark.parametrize("body", [{}, {"hint": "a", "evict": 7}, []])
def test_nonsense_is_refused(simulated: Host, body: object) -> None:
    assert simulated.post(LOAD_PATH, body).status == 400


def test_an_app_without_a_model_cache_takes_no_load_jobs() -> None:
    with Host("runners.echo:Echo") as host, host.events() as events:
        hello = events.until(Hello)
        assert not hello.loads
        assert order(host, "m") == 400


def test_a_load_beside_a_request_does_not_wait_for_it(simulated: Host) -> None:
    simulated.post("/", {"model": "long"})
    running = simulated.later("/", {"model": "long", "exec_s": 3.0})
    with simulated.events() as events:
        events.next()
        order(simulated, "other")
        assert events.until(LoadEnded).ok
        assert not running.done
        assert "other" in (simulated.row.hints or ())
    assert running.reply().status == 200


def test_what_left_the_device_comes_back_from_host_memory_and_the_runner_says_so() -> None:
    with Host("runners.diffusion:AnyModelRunner", config={"cache": {"max_models": 1}}) as host:
        with host.events() as events:
            hello = events.until(Hello)
            assert 0 < hello.vram_bytes < hello.run_bytes
            assert hello.joint == "+"
            order(host, "digits-ink")
            assert events.until(LoadEnded).tier == "disk"
            host.post("/", draws("digits-ember"))
            assert events.until(Released).tier == "disk"
            rows = {row.name: row for row in host.row.models}
            assert (rows["digits-ink"].tier, rows["digits-ember"].tier) == ("ram", "vram")
            assert 0 < rows["digits-ember"].vram_bytes <= rows["digits-ember"].ram_bytes
            left = rows["digits-ink"]
            assert left.vram_bytes < left.ram_bytes, "what it shares with the other is still there"
            assert left.size_bytes == left.ram_bytes
            order(host, "digits-ink")
            assert events.until(LoadEnded).tier == "ram"
            reply = host.post("/", draws("digits-ember"))
            assert events.until(Released).tier == "ram"
        assert reply.timings["cache"] == "ram"
