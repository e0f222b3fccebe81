"""The example of fal's page on routing hints, hosted unchanged but for its import."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runners.demo import demo_model_path
from tests.host.harness import Host

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def docs() -> Iterator[Host]:
    with Host("tests/compat/docs_app.py::AnyModelRunner") as host:
        yield host


def test_it_is_warm_for_nothing_at_first_and_then_for_what_it_has_loaded(docs: Host) -> None:
    assert docs.ask("GET", "/health").headers["x-fal-runner-hints"] == ""
    ink, ember = (str(demo_model_path(name)) for name in ("digits-ink", "digits-ember"))
    for model, hints in ((ink, [ink]), (ember, [ink, ember]), (ink, [ink, ember])):
        reply = docs.post("/", {"model": model, "prompt": "seven"}, {"X-Fal-Runner-Hint": model})
        assert reply.status == 200, reply.body
        assert reply.headers["x-fal-runner-hints"].split(",") == hints
        image = reply.json["image"]
        assert (image["content_type"], image["width"], image["height"]) == ("image/png", 64, 64)
        assert (docs.files / image["url"].rpartition("/")[2]).stat().st_size == image["file_size"]
    assert docs.row.hints == (ink, ember)
    assert docs.row.loads == 2


def test_its_input_is_validated_as_fastapi_does(docs: Host) -> None:
    reply = docs.post("/", {"model": "m"})
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "prompt"]
