"""The example of fal's page on routing hints, as a real `fal.App` on the SDK from PyPI."""

from __future__ import annotations

import difflib
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from runners.demo import demo_model_path
from tests.host.harness import Host
from tests.process.harness import Falctl

PAGES = Path(__file__).parent / "pages"
NAME = "optimizing_routing_behavior"
APP = f"{PAGES / NAME}.py::AnyModelRunner"
ON_CPU = {"DOCS_APP_DEVICE": "cpu"}
INK, EMBER = (str(demo_model_path(name)) for name in ("digits-ink", "digits-ember"))


def test_the_app_is_the_page_but_for_the_forgotten_import_and_the_device() -> None:
    page, app = ((PAGES / f"{NAME}.{kind}").read_text().splitlines() for kind in ("txt", "py"))
    changes = [line for line in difflib.ndiff(page, app) if line[0] in "+-"]
    assert changes == [
        "+ import os",
        "- from pydantic import BaseModel",
        "+ from pydantic import BaseModel, Field",
        '-         pipeline.to("cuda")',
        '+         pipeline.to(os.environ["DOCS_APP_DEVICE"])',
    ]


@pytest.fixture(scope="module")
def docs() -> Iterator[Host]:
    with Host(APP, environ=ON_CPU) as host:
        yield host


@pytest.mark.process
def test_it_is_warm_for_nothing_at_first_and_then_for_what_it_has_loaded(docs: Host) -> None:
    assert docs.ask("GET", "/health").headers["x-fal-runner-hints"] == ""
    for model, hints, cache in (
        (INK, [INK], "disk"),
        (EMBER, [INK, EMBER], "disk"),
        (INK, [INK, EMBER], "hit"),
    ):
        reply = docs.post("/", {"model": model, "prompt": "seven"}, {"X-Fal-Runner-Hint": model})
        assert reply.status == 200, reply.body
        assert reply.headers["x-fal-runner-hints"].split(",") == hints
        assert reply.timings["cache"] == cache
        image = reply.json["image"]
        assert (image["content_type"], image["width"], image["height"]) == ("image/png", 64, 64)
        assert (docs.files / image["url"].rpartition("/")[2]).stat().st_size == image["file_size"]
    assert docs.row.hints == (INK, EMBER)
    assert docs.row.loads == 2


@pytest.mark.process
def test_its_input_is_validated_by_the_sdk(docs: Host) -> None:
    reply = docs.post("/", {"model": "m"})
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "prompt"]
    assert reply.headers["x-fal-billable-units"] == "0"


@pytest.mark.process
def test_behind_the_router_each_model_stays_on_one_runner() -> None:
    order = [INK, EMBER] * 4
    random.Random(6).shuffle(order)
    with Falctl(APP, env=ON_CPU, args=("--runners", "2"), config='[routing]\npolicy = "fal"\n') as f:
        runners = defaultdict(set)
        for model in order:
            reply = f.post("/", {"model": model, "prompt": "seven"}, headers={"X-Fal-Runner-Hint": model})
            assert reply.status == 200, reply.body
            assert model in reply.headers["x-fal-runner-hints"].split(",")
            image = f.get(reply.json["image"]["url"].removeprefix(f.url))
            assert image.headers["content-type"] == "image/png"
            runners[model].add(reply.headers["x-falctl-runner"])
        assert sorted(map(sorted, runners.values())) == [["0"], ["1"]]
        assert sum(r["loads"] for r in f.status()["runners"]) == 2
