"""The documented example behind the router: the property that the page promises, with real models."""

from __future__ import annotations

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runners.demo import demo_model_path
from tests.process.harness import Falctl

pytestmark = pytest.mark.process

APP = f"{Path(__file__).parent / 'docs_app.py'}::AnyModelRunner"


@pytest.mark.parametrize("policy", ["affinity", "fal"])
def test_each_model_of_the_example_stays_on_one_runner(policy: str) -> None:
    """Under fal's own rule only while the matching runner is idle, so there one request is sent at a time."""
    models = [str(demo_model_path(name)) for name in ("digits-ink", "digits-ember")]
    order = models * 4
    random.Random(6).shuffle(order)
    config = (
        f'[routing]\npolicy = "{policy}"\nhold = "120s"\nbypass_max = "120s"\n'  # 50 steps may take long here
    )
    with Falctl(APP, config=config, args=("--runners", "2")) as f:

        def ask(model: str) -> tuple[str, str]:
            reply = f.post("/", {"model": model, "prompt": "seven"}, headers={"X-Fal-Runner-Hint": model})
            assert reply.status == 200, reply.body
            assert model in reply.headers["x-fal-runner-hints"].split(",")
            assert (
                f.get(reply.json["image"]["url"].removeprefix(f.url)).headers["content-type"] == "image/png"
            )
            return model, reply.headers["x-falctl-runner"]

        with ThreadPoolExecutor(8 if policy == "affinity" else 1) as pool:
            placed = list(pool.map(ask, order))
        runners = defaultdict(set)
        for model, runner in placed:
            runners[model].add(runner)
        assert sorted(map(sorted, runners.values())) == [["0"], ["1"]]
        assert sum(r["loads"] for r in f.status()["runners"]) == 2
