"""AnyModelRunner draws with what the configuration allows, and says which line is missing when it may not."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from falctl.toolkit import Drawing as DrawingSize
from runners.demo import DEMO_MODELS, demo_model_path
from runners.diffusion import Prompt, drawing_size
from runners.model_names import UnknownModelError, find_model
from tests.host.harness import STEP_S, Host
from tests.wait import until

CLASSIC, INK, EMBER, BLUEPRINT = DEMO_MODELS

process = pytest.mark.process


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of model folders, some of them broken."""
    parent = tmp_path_factory.mktemp("models")
    for name in ("good", "with+plus", "no-index", "no-weights", "cut-weights", "bad-json", "pickled"):
        shutil.copytree(demo_model_path(CLASSIC), parent / name)
    (parent / "no-index" / "model_index.json").unlink()
    unet = Path("unet") / "diffusion_pytorch_model.safetensors"
    (parent / "no-weights" / unet).unlink()
    whole = (parent / "cut-weights" / unet).read_bytes()
    (parent / "cut-weights" / unet).write_bytes(whole[: len(whole) // 2])
    (parent / "bad-json" / "unet" / "config.json").write_text('{"_class_name": ')
    (parent / "pickled" / unet).unlink()
    torch.save(load_file(demo_model_path(CLASSIC) / unet), (parent / "pickled" / unet).with_suffix(".bin"))
    coded = parent / "coded"
    shutil.copytree(demo_model_path(CLASSIC), coded)
    (coded / "evil.py").write_text(f"open({str(parent / 'ran')!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((coded / "model_index.json").read_text())
    (coded / "model_index.json").write_text(json.dumps({**index, "_class_name": ["evil", "Evil"]}))
    return parent


@pytest.fixture(scope="module")
def artist(folders: Path) -> Iterator[Host]:
    config = {"models": {"paths": [str(folders)], "allow": ["some/model"]}, "cache": {"max_models": 2}}
    with Host("runners.diffusion:AnyModelRunner", config=config) as host:
        yield host


def ask(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "seven", "num_inference_steps": 2, "seed": 7, **fields}


def drawn(url: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(url.partition(";base64,")[2])))


@process
def test_an_image_is_drawn_stored_and_described(artist: Host) -> None:
    reply = artist.post("/", ask(CLASSIC))
    assert reply.status == 200
    picture = reply.json["images"][0]
    assert set(picture) == {"url", "content_type", "width", "height"}
    assert (picture["content_type"], picture["width"], picture["height"]) == ("image/png", 64, 64)
    with Image.open(artist.files / picture["url"].rpartition("/")[2]) as image:
        assert (image.format, image.size) == ("PNG", (64, 64))
    assert (reply.json["seed"], reply.json["model"]) == (7, CLASSIC)
    assert set(reply.json["timings"]) == {"load", "inference"}


@process
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_sync_mode_answers_with_the_image_itself(artist: Host, kind: str) -> None:
    before = set(artist.files.iterdir())
    picture = artist.post("/", ask(CLASSIC, sync_mode=True, output_format=kind)).json["images"][0]
    assert picture["url"].startswith(f"data:image/{kind};base64,")
    assert drawn(picture["url"]).format == kind.upper()
    assert set(artist.files.iterdir()) == before


@process
def test_a_seed_draws_the_same_image_again_and_the_next_one_another(artist: Host) -> None:
    one = artist.post("/", ask(CLASSIC, sync_mode=True)).json
    again = artist.post("/", ask(CLASSIC, sync_mode=True)).json
    other = artist.post("/", ask(CLASSIC, sync_mode=True, seed=8)).json
    assert one["images"] == again["images"] != other["images"]


@process
def test_several_images_have_one_seed_each(artist: Host) -> None:
    several = artist.post("/", ask(CLASSIC, sync_mode=True, num_images=3)).json["images"]
    assert len({picture["url"] for picture in several}) == 3
    third = artist.post("/", ask(CLASSIC, sync_mode=True, seed=9)).json["images"][0]
    difference = max(
        abs(a - b)
        for a, b in zip(drawn(several[2]["url"]).tobytes(), drawn(third["url"]).tobytes(), strict=True)
    )
    assert difference <= 2  # a batch rounds differently from one image


@process
def test_without_a_seed_one_is_chosen_and_told(artist: Host) -> None:
    reply = artist.post("/", ask(CLASSIC, seed=None, sync_mode=True)).json
    assert (
        reply["images"] == artist.post("/", ask(CLASSIC, seed=reply["seed"], sync_mode=True)).json["images"]
    )


def test_how_many_images_are_drawn_counts_also_where_their_size_is_the_models() -> None:
    def size(**fields: Any) -> DrawingSize:
        return drawing_size(Prompt(model="m", prompt="p", **fields))

    assert size(num_images=16) == DrawingSize(0, 0, 16)
    assert size(width=64) == DrawingSize(64, 0)


@process
def test_size_and_negative_prompt_reach_the_pipeline(artist: Host) -> None:
    picture = artist.post("/", ask(CLASSIC, width=96, height=32, negative_prompt="one")).json["images"][0]
    assert (picture["width"], picture["height"]) == (96, 32)


@process
def test_the_least_recently_used_model_leaves(artist: Host) -> None:
    for model in (CLASSIC, INK, CLASSIC, EMBER):
        assert artist.post("/", ask(model)).status == 200
    assert artist.row.hints == (EMBER, CLASSIC)
    assert artist.post("/", ask(CLASSIC)).timings["cache"] == "hit"
    assert artist.post("/", ask(INK)).timings["cache"] == "ram", "its bytes are in host memory still"


@process
def test_a_folder_of_models_paths_is_loaded_by_its_name(artist: Host) -> None:
    reply = artist.post("/", ask("good"))
    assert reply.status == 200
    assert reply.headers["x-fal-runner-hints"].split(",")[0] == "good"


@process
@pytest.mark.parametrize("model", ["no-index", "no-weights", "cut-weights", "bad-json", "pickled", "coded"])
def test_a_folder_that_is_no_whole_safetensors_pipeline_is_refused_and_the_runner_lives(
    artist: Host, folders: Path, model: str
) -> None:
    reply = artist.post("/", ask(model))
    assert (reply.status, reply.json["error_type"]) == (422, "model_unusable")
    assert reply.json["detail"].startswith(f"Model '{model}' cannot be loaded: ")
    assert model not in (artist.row.hints or ())
    assert not (folders / "ran").exists()
    assert artist.post("/", ask(CLASSIC)).status == 200


@process
def test_an_allowed_hub_id_that_is_not_there_is_unusable_not_a_crash(artist: Host) -> None:
    reply = artist.post("/", ask("some/model"))
    assert (reply.status, reply.json["error_type"]) == (422, "model_unusable")
    said = "Model 'some/model' cannot be loaded: it is not (all) on this machine, and could not be fetched from the Hub: "
    assert reply.json["detail"].startswith(said)
    assert "local_files_only" not in reply.json["detail"], "advice to who calls diffusers"


@process
@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("owner/name", 'allow = ["some/model", "owner/name"]'),
        ("nowhere", '"/folder/that/holds/it"]'),
        ("../models/good", 'paths = ["/folder/that/holds/it"]'),
    ],
)
def test_a_refusal_prints_the_line_to_add(artist: Host, model: str, line: str) -> None:
    reply = artist.post("/", ask(model))
    assert (reply.status, reply.json["error_type"]) == (404, "model_not_allowed")
    assert line in reply.json["detail"]
    assert "[models]" in reply.json["detail"]


@process
def test_a_wrong_name_costs_no_warm_model(artist: Host) -> None:
    for model in (CLASSIC, INK):
        assert artist.post("/", ask(model)).status == 200
    warm = artist.row.hints
    assert warm is not None
    assert warm[:2] == (INK, CLASSIC)
    assert artist.post("/", ask("nowhere")).status == 404
    assert artist.row.hints == warm


@process
@pytest.mark.parametrize(
    "wrong",
    [
        {"num_inference_steps": 0},
        {"num_inference_steps": 501},
        {"guidance_scale": -1},
        {"width": 65},
        {"height": 8192},
        {"num_images": 0},
        {"num_images": 17},
        {"seed": -1},
        {"output_format": "gif"},
        {"model": ""},
    ],
)
def test_an_input_out_of_bounds_is_422(artist: Host, wrong: dict[str, Any]) -> None:
    reply = artist.post("/", ask(CLASSIC) | wrong)
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", next(iter(wrong))]


@process
def test_steps_are_reported_and_a_cancelled_request_ends_between_them(artist: Host) -> None:
    artist.post("/", ask(CLASSIC))
    running = artist.later("/", ask(CLASSIC, num_inference_steps=500), {"x-fal-request-id": "steps"})
    until(
        lambda: artist.row.executing and artist.row.executing[0].step > 3, within_s=STEP_S, what="some steps"
    )
    assert artist.row.executing[0].steps == 500
    assert artist.post("/falctl/cancel/steps").status == 202
    assert running.reply().status == 499
    assert artist.post("/", ask(CLASSIC)).timings["cache"] == "hit"


@process
def test_a_pipeline_without_a_prompt_gets_only_what_it_takes(artist: Host, folders: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folders / "unconditional")
    reply = artist.post("/", ask("unconditional", num_images=2))
    assert reply.status == 200
    assert [(p["width"], p["height"]) for p in reply.json["images"]] == [(16, 16)] * 2


@process
def test_a_lora_is_found_like_a_model_and_is_a_part_of_the_hint(artist: Host, folders: Path) -> None:
    save_file({"nothing": torch.zeros(1)}, folders / "mine.safetensors")
    for path in ("mine", "mine.safetensors"):
        reply = artist.post("/", ask(CLASSIC, loras=[{"path": path, "scale": 0.5}]))
        assert (reply.status, reply.json["error_type"]) == (422, "model_unusable")
        assert reply.json["detail"].startswith(f"Model '{CLASSIC}+mine' cannot be loaded: ")
        assert ("pip install 'falctl[lora]'" in reply.json["detail"]) == (find_spec("peft") is None)
    reply = artist.post("/", ask(CLASSIC, loras=[{"path": "yours"}]))
    assert (reply.status, reply.json["error_type"]) == (404, "model_not_allowed")
    assert artist.post("/", ask(CLASSIC, loras=[{"path": "../mine"}])).status == 422
    assert artist.post("/", ask(CLASSIC)).status == 200


@process
def test_inputs_that_the_pipeline_refuses_are_422(artist: Host, folders: Path) -> None:
    shutil.copytree(demo_model_path(CLASSIC), folders / "from-image")
    index = json.loads((folders / "from-image" / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionImg2ImgPipeline"
    (folders / "from-image" / "model_index.json").write_text(json.dumps(index))
    reply = artist.post("/", ask("from-image"))
    assert (reply.status, reply.json["error_type"]) == (422, "bad_request")
    assert reply.json["detail"].startswith("Model 'from-image' refuses these inputs: ")


def test_what_follows_a_plus_is_a_lora_unless_the_folder_is_called_so(folders: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.zeros(1)}, folders / f"{name}.safetensors")
    (folders / "c.bin").write_bytes(b"a pickle")

    def found(name: str) -> tuple[str, tuple[str, ...]]:
        source = find_model(name, paths=[folders], allow=["some/model"])
        return Path(source.place).name, tuple(Path(lora).name for lora in source.loras)

    assert found("good") == ("good", ())
    assert found("good+a") == ("good", ("a.safetensors",))
    assert found("with+plus") == ("with+plus", ())
    assert found("with+plus+b+a.safetensors") == ("with+plus", ("b.safetensors", "a.safetensors"))
    assert found("some/model+a") == ("model", ("a.safetensors",))
    for name, said in (("good+", "names no LoRA behind its last"), ("+a", r"Model '\+a' is neither")):
        with pytest.raises(UnknownModelError, match=said):
            found(name)
    for name in ("good+c", "good+c.bin", "good+../a", "good+good", "with+a", "+a"):
        with pytest.raises(UnknownModelError, match=r"paths = "):
            found(name)


@given(st.text(st.sampled_from("./\\ab~\0\n-_"), max_size=12))
def test_no_name_leads_out_of_the_folders(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    parent = tmp_path_factory.getbasetemp() / "a-folder-of-folders"
    inside = parent / "a"
    inside.mkdir(parents=True, exist_ok=True)
    if name == "a":
        assert find_model(name, paths=[parent], allow=[]).place == str(inside)
        return
    with pytest.raises(UnknownModelError, match=r"paths = |allow = "):
        find_model(name, paths=[parent], allow=[])


def test_a_hub_id_is_fetched_only_if_it_is_listed_and_looks_like_one() -> None:
    assert find_model("some/model", paths=[], allow=["some/model"]).local is False
    for name in ("some/other", "../x", "a/../b", "/etc", "some/model/x"):
        with pytest.raises(UnknownModelError):
            find_model(name, paths=[], allow=["some/model", "../x", "a/../b", "/etc", "some/model/x"])
