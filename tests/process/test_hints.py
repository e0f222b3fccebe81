"""The main job, with real processes: a request for a model goes to the runner that holds it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.process.harness import Falctl

pytestmark = pytest.mark.process

REPETITIONS = 10
AT_ONCE = 24
SIMULATED = "runners.simulated:SimulatedModels"
COSTS = "[simulated]\nload_s = 0.1\nexec_s = 0.005\n"
STRICT = COSTS + '[routing]\npolicy = "affinity"\nhold = 3600\n'
"""`auto` weighs what it measured: where many wait and the machine is slow, a second load may well pay."""
HINT = "X-Fal-Runner-Hint"


def play(f: Falctl, *, header: bool, at_once: int = AT_ONCE) -> list[dict[str, Any]]:
    """Post 24 requests over 2 models in random order at once, 10 times; return what the runners did."""
    rng = random.Random(20)
    done: list[dict[str, Any]] = []

    def ask(model: str) -> dict[str, Any]:
        headers: Mapping[str, str] = {HINT: model} if header else {}
        reply = f.post("/", {"model": model}, headers=headers)
        assert reply.status == 200, reply.body
        table: dict[str, Any] = reply.json
        assert table["runner"] == int(reply.headers["x-falctl-runner"])
        assert not table["loaded"] or reply.headers["x-falctl-cache"] == "disk"
        return {**table, "cache": reply.headers["x-falctl-cache"]}

    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(REPETITIONS):
            models = ["model-a", "model-b"] * (AT_ONCE // 2)
            rng.shuffle(models)
            done += pool.map(ask, models)
    return done


def loads_of(done: list[dict[str, Any]], f: Falctl) -> Counter[str]:
    """Return how many requests say that a load was made for them; the runners must have loaded as often."""
    loads = Counter(t["model"] for t in done if t["cache"] == "disk")
    assert sum(r["loads"] for r in f.status()["runners"]) == loads.total()
    return loads


def runners_of(done: list[dict[str, Any]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for table in done:
        found[table["model"]].add(table["runner"])
    return found


def test_with_hints_each_model_is_loaded_on_one_runner_only() -> None:
    with Falctl(SIMULATED, config=STRICT, args=("--runners", "2")) as f:
        done = play(f, header=True)
        assert len(done) == REPETITIONS * AT_ONCE
        assert loads_of(done, f) == {"model-a": 1, "model-b": 1}
        assert sorted(map(sorted, runners_of(done).values())) == [[0], [1]]
        router = f.status()["router"]
        joins = sum(t["cache"] == "join" for t in done)
        assert router["misses"] == 2 + joins
        assert router["hits"] == len(done) - 2 - joins


def test_the_body_field_model_serves_as_hint_when_the_header_is_absent() -> None:
    with Falctl(SIMULATED, config=STRICT, args=("--runners", "2")) as f:
        assert sorted(map(sorted, runners_of(play(f, header=False)).values())) == [[0], [1]]


def test_by_default_a_model_that_nobody_waits_for_is_loaded_once() -> None:
    with Falctl(SIMULATED, config=COSTS, args=("--runners", "2")) as f:
        assert loads_of(play(f, header=True, at_once=1), f) == {"model-a": 1, "model-b": 1}


def test_without_hints_both_models_are_loaded_on_both_runners() -> None:
    with Falctl(SIMULATED, config=COSTS + '[routing]\nhint_from = ""\n', args=("--runners", "2")) as f:
        done = play(f, header=False)
        assert runners_of(done) == {"model-a": {0, 1}, "model-b": {0, 1}}
        assert loads_of(done, f) == {"model-a": 2, "model-b": 2}


def test_fals_own_rule_keeps_models_apart_while_their_runners_are_idle() -> None:
    with Falctl(SIMULATED, config=COSTS + '[routing]\npolicy = "fal"\n', args=("--runners", "2")) as f:
        done = play(f, header=True, at_once=1)
        assert sorted(map(sorted, runners_of(done).values())) == [[0], [1]]


def test_fals_own_rule_does_not_wait_for_a_busy_match() -> None:
    with Falctl(SIMULATED, config=COSTS + '[routing]\npolicy = "fal"\n', args=("--runners", "2")) as f:
        done = play(f, header=True)
        assert runners_of(done) == {"model-a": {0, 1}, "model-b": {0, 1}}


def test_an_app_without_hints_is_sent_what_it_served_last() -> None:
    with Falctl("runners.echo:Echo", args=("--runners", "2")) as f:
        first = {m: f.post("/", {}, headers={HINT: m}).headers["x-falctl-runner"] for m in ("a", "b")}
        assert set(first.values()) == {"0", "1"}
        for model in random.Random(1).choices(["a", "b"], k=20):
            assert f.post("/", {}, headers={HINT: model}).headers["x-falctl-runner"] == first[model]


def test_the_runner_evicts_and_forgets_the_hint_of_what_it_evicted() -> None:
    # Which of two models used once leaves is the policy's affair: it weighs what their loads were seen to take.
    with Falctl(SIMULATED, config=COSTS + "[cache]\nmax_models = 2\n", args=("--runners", "1")) as f:
        for model in ("a", "b", "c"):
            assert f.post("/", {"model": model}).headers["x-falctl-cache"] == "disk"
        kept, gone = sorted("ab", key=lambda m: m not in f.status()["runners"][0]["hints"])
        reply = f.post("/", {"model": kept})
        assert reply.headers["x-falctl-cache"] == "hit"
        assert sorted(reply.headers["x-fal-runner-hints"].split(",")) == [kept, "c"]
        reply = f.post("/", {"model": gone})
        assert reply.headers["x-falctl-cache"] == "disk"
        hints = f.status()["runners"][0]["hints"]
        assert gone in hints
        assert len(hints) == 2
        assert set(reply.headers["x-fal-runner-hints"].split(",")) == set(hints)


def test_a_load_job_is_shared_by_those_who_waited_for_it_and_their_receipts_say_so() -> None:
    config = COSTS + '[routing]\npolicy = "auto"\n'
    with Falctl(SIMULATED, config=config, args=("--runners", "1")) as f, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: f.post("/", {"model": "slow@1.0"}), range(4)))
        assert Counter(r.headers["x-falctl-cache"] for r in replies) == {"disk": 1, "join": 3}
        assert f.post("/", {"model": "slow@1.0"}).headers["x-falctl-cache"] == "hit"
        assert [r["loads"] for r in f.status()["runners"]] == [1]
