"""From a prompt to a picture on disk: the demo models, the default app, `falctl run` and the files it is given."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator

import pytest
from PIL import Image

from runners.demo import DEMO_MODELS
from tests.demo.judging import DigitReader, StyleSorter
from tests.process.harness import Falctl
from tools.demo.digits import load_split
from tools.demo.pictures import to_scans

pytestmark = pytest.mark.process

PAINTER = """
from PIL import Image as Pil
from falctl import App, endpoint
from falctl.toolkit import Image

class Painter(App):
    @endpoint("/")
    def paint(self, asked: dict[str, str]) -> Image:
        return Image.from_pil(Pil.new("RGB", (8, 8), asked["prompt"]))
"""


@pytest.fixture(scope="module")
def demo() -> Iterator[Falctl]:
    with Falctl("runners.diffusion:AnyModelRunner", args=("--runners", "2")) as f:
        yield f


def test_asked_for_seven_every_demo_model_draws_a_seven_in_its_own_style(demo: Falctl) -> None:
    judges = load_split().judge
    reader, sorter = DigitReader(judges), StyleSorter(judges)
    for model in DEMO_MODELS:
        body = {
            "model": model,
            "prompt": "seven",
            "seed": 7,
            "num_inference_steps": 10,
            "guidance_scale": 2.0,
        }
        reply = demo.post("/", body)
        assert reply.status == 200, reply.body
        [image] = reply.json["images"]
        assert image["url"].startswith(demo.url + "/files/")
        fetched = demo.get(image["url"].removeprefix(demo.url))
        picture = Image.open(io.BytesIO(fetched.body))
        assert picture.size == (image["width"], image["height"])
        assert list(reader.read(to_scans([picture], model))) == [7]
        assert sorter.sort([picture]) == [model]


def test_the_same_seed_draws_the_same_picture(demo: Falctl) -> None:
    body = {"model": "digits-ink", "prompt": "three", "seed": 11, "sync_mode": True}
    first, second = (demo.post("/", body).json for _ in range(2))
    assert first["seed"] == second["seed"] == 11
    assert first["images"] == second["images"]
    encoded = first["images"][0]["url"].removeprefix("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).format == "PNG"


def test_falctl_run_writes_the_image_and_says_miss_then_hit(demo: Falctl) -> None:
    demo.post("/", {"model": "digits-classic", "prompt": "one"})
    for name in ("digits-ember", "digits-blueprint", "digits-classic"):
        demo.run("run", name, "one", "-o", "x.png")
    out = demo.cwd / "seven.webp"
    told = demo.run("run", "digits-classic", "seven", "-o", str(out), "--seed", "7")
    assert told.returncode == 0, told.stderr
    assert re.search(
        r"digits-classic on runner [01], hit \(was warm\); queue .* load 0\.00 s, exec", told.stdout
    )
    with Image.open(out) as picture:
        assert picture.format == "WEBP"


def test_a_falctl_run_of_what_is_nowhere_is_a_miss(demo: Falctl) -> None:
    demo.run("unload", "digits-ink")
    told = demo.run("run", "digits-ink", "two", "-o", "two.png")
    assert "miss (loaded from disk)" in told.stdout, told.stderr
    assert (demo.cwd / "two.png").stat().st_size > 100


def test_falctl_run_says_what_an_app_answered_that_drew_nothing() -> None:
    with Falctl("runners.echo:Echo", args=("--runners", "1")) as f:
        told = f.run("run", "m", "seven", "-o", "x.png")
        assert (told.returncode, len(told.stderr.splitlines())) == (1, 1), told.stderr
        assert "answered no image" in told.stderr
        assert "seven" in told.stderr


def test_falctl_run_draws_by_an_app_whose_answer_is_the_image() -> None:
    with Falctl("painter.py::Painter", args=("--runners", "1"), start=False) as f:
        (f.cwd / "painter.py").write_text(PAINTER)
        f.start()
        f.wait_ready()
        told = f.run("run", "m", "red", "-o", "x.png")
        assert told.returncode == 0, told.stderr
        with Image.open(f.cwd / "x.png") as picture:
            assert picture.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "model", ["../../etc", "/etc/passwd", "someone/some-model", "no-such-model", "digits-ink/.."]
)
def test_a_model_that_is_not_allowed_is_refused_with_what_to_do(demo: Falctl, model: str) -> None:
    reply = demo.post("/", {"model": model, "prompt": "seven"})
    assert 400 <= reply.status < 500
    assert re.search(r"\[models\].*(paths|allow) = \[", str(reply.json["detail"]))
    told = demo.run("run", model, "seven", "-o", "x.png")
    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1


def test_falctl_run_refuses_a_name_that_is_no_picture(demo: Falctl) -> None:
    told = demo.run("run", "digits-ink", "seven", "-o", "seven.txt")
    assert (told.returncode, told.stdout) == (2, "")
    assert ".png" in told.stderr


def test_wrong_input_is_answered_as_fastapi_does(demo: Falctl) -> None:
    reply = demo.post("/", {"model": "digits-ink", "prompt": "seven", "num_inference_steps": 0})
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "num_inference_steps"]
