"""The demo models on a real card: pins that torch and NVML agree on, VRAM that is seen, and given back."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pynvml
import pytest
from PIL import Image

from falctl.errors import EXIT_CARD_BROKEN
from falctl.supervisor import nvml
from falctl.supervisor.xid_watch import _registered
from tests.gpu.card import CONTEXT_BYTES, FREED_S, NOISE_BYTES, MiB, used_bytes, wait_freed
from tests.process.harness import Falctl
from tests.process.test_leaving import STEPS, Followed, prompt
from tests.wait import until

pytestmark = [pytest.mark.gpu, pytest.mark.process, pytest.mark.timeout(400)]

APP: Final = "runners.diffusion:AnyModelRunner"
MODELS: Final = ("digits-classic", "digits-ink", "digits-ember", "digits-blueprint")
START_S: Final = 240.0
"""Two imports of torch and diffusers, from a cold disk."""


def start(config: str = "") -> Falctl:
    return Falctl(APP, config=f"[runners]\ngpus = [0, 0]\n{config}", start=False)


@contextmanager
def alone(app: str = APP, config: str = "") -> Iterator[Falctl]:
    """One runner on the card, ready."""
    with Falctl(app, config=f"[runners]\ngpus = [0]\n{config}", start=False) as f:
        f.start()
        f.wait_ready(within_s=START_S)
        yield f


@contextmanager
def guest(nbytes: int) -> Iterator[None]:
    """Another program that takes *nbytes* of the card."""
    take = f"import torch; held = torch.empty({nbytes}, dtype=torch.uint8, device='cuda'); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield
        child.communicate("\n", timeout=60.0)


def draw(f: Falctl, model: str, *, seed: int = 1) -> tuple[int, Image.Image]:
    """Draw a seven; return the runner that did, and the picture."""
    body = {"model": model, "prompt": "seven", "seed": seed, "num_inference_steps": 20}
    reply = f.post("/", body, timeout_s=120.0)
    assert reply.status == 200, reply.body
    answer: dict[str, Any] = reply.json
    stored = f.get(answer["images"][0]["url"].removeprefix(f.url))
    assert stored.status == 200
    return int(reply.headers["x-falctl-runner"]), Image.open(io.BytesIO(stored.body)).convert("RGB")


def draw_on_both(f: Falctl) -> dict[str, Image.Image]:
    """Draw with every model, several at a time, until both runners have drawn; return a picture of each."""
    pictures: dict[str, Image.Image] = {}
    runners: set[int] = set()

    def round_of_four() -> bool:
        with ThreadPoolExecutor(len(MODELS)) as pool:
            for model, (runner, picture) in zip(MODELS, pool.map(lambda m: draw(f, m), MODELS), strict=True):
                runners.add(runner)
                pictures[model] = picture
        return runners == {0, 1}

    until(round_of_four, within_s=120.0, what="both runners have drawn")
    return pictures


def test_two_runners_share_a_card_draw_on_it_and_give_it_back(gpu: nvml.Machine) -> None:
    card = gpu.cards[0]
    before = used_bytes(gpu)
    with start() as f:
        f.start()
        f.wait_ready(within_s=START_S)
        assert f"falctl: 2 GPU runners of {APP}" in f.log
        assert [f.life(i).gpus for i in (0, 1)] == [(0,), (0,)]
        row = f.gpu(0)
        assert (row.kind, row.gpu_uuid, row.name, row.state) == ("cuda", card.uuid, card.name, "ok")

        pictures = draw_on_both(f)
        for model, picture in pictures.items():
            levels = picture.convert("L").tobytes()
            assert max(levels) - min(levels) > 60, f"{model} drew nothing"
        assert len({picture.tobytes() for picture in pictures.values()}) == len(MODELS)

        def shown() -> bool:
            told = f.status()["cards"][0]
            return bool(told["used_bytes"] >= before + 2 * CONTEXT_BYTES and told["state"] == "ok")

        until(shown, within_s=10.0, what="two CUDA contexts are on the dashboard", every_s=0.5)
        told = f.status()["cards"][0]
        assert told["total_bytes"] == card.total_bytes
        assert (told["stale"], told["gpu_uuid"]) == (False, card.uuid)
        assert f.run("status", "--once").returncode == 0
        assert f.stop() == 0
    wait_freed(gpu, before)


def test_a_killed_runner_gives_its_vram_back_and_the_other_draws_on(gpu: nvml.Machine) -> None:
    before = used_bytes(gpu)
    with start('backoff_min = "10m"\nbackoff_max = "10m"\n') as f:
        f.start()
        f.wait_ready(within_s=START_S)
        draw_on_both(f)
        both = used_bytes(gpu)
        assert both >= before + 2 * CONTEXT_BYTES
        os.kill(f.pids()["runner0"], signal.SIGKILL)
        f.wait_state(0, "backoff")
        until(
            lambda: used_bytes(gpu) <= both - CONTEXT_BYTES,
            within_s=FREED_S,
            what="the dead one's VRAM is back",
        )
        assert {draw(f, model)[0] for model in MODELS} == {1}
        assert used_bytes(gpu) >= before + CONTEXT_BYTES
        assert f.stop() == 0
    wait_freed(gpu, before)


def test_killing_the_supervisor_leaves_no_vram_behind(gpu: nvml.Machine) -> None:
    before = used_bytes(gpu)
    with start() as f:
        f.start()
        f.wait_ready(within_s=START_S)
        assert used_bytes(gpu) >= before + 2 * CONTEXT_BYTES, "each runner has proved its pin in a context"
        f.kill()
        f.assert_nothing_left()
    wait_freed(gpu, before)


def test_a_real_card_tells_of_its_xids(gpu: nvml.Machine) -> None:
    """That it would: nothing provokes one. The wait ends in time, and with the thread."""
    card = gpu.cards[0]
    try:
        events, concerned = _registered(card.uuid, [card])
    except pynvml.NVMLError as error:
        pytest.skip(f"this driver tells of none: {error}")
    assert concerned == {card.uuid: None}
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 100)
    pynvml.nvmlEventSetFree(events)


def test_a_card_that_the_caller_hides_is_not_used(gpu: nvml.Machine) -> None:
    before = used_bytes(gpu)
    with Falctl("runners.echo:Echo", env={"CUDA_VISIBLE_DEVICES": ""}) as f:
        assert "falctl: no GPU is visible here: starting 2 CPU runners" in f.log
        assert used_bytes(gpu) <= before + NOISE_BYTES


def test_idle_models_give_way_to_another_program_and_come_back(gpu: nvml.Machine) -> None:
    card = gpu.cards[0]
    free_bytes = card.total_bytes - used_bytes(gpu)
    reserve = f'[cache]\nreserve_vram = "{free_bytes // MiB - 4096}MiB"\n'
    with alone(config=reserve) as f:
        _, first = draw(f, "digits-ink")
        until(
            lambda: f.gpu(0).used_bytes > card.total_bytes - free_bytes, within_s=30.0, what="a calm sample"
        )
        assert "cache.gave_way" not in f.log
        with guest(5 << 30):
            f.wait_line("cache.gave_way bytes=")
        until(
            lambda: used_bytes(gpu) < card.total_bytes - free_bytes + (2 << 30),
            within_s=FREED_S,
            what="it left",
        )
        reply = f.post("/", {"model": "digits-ink", "prompt": "seven", "seed": 1, "num_inference_steps": 20})
        assert (reply.status, reply.headers["x-falctl-cache"]) == (200, "ram"), reply.body
        assert draw(f, "digits-ink")[1].tobytes() == first.tobytes()


def test_a_failed_assertion_on_the_card_ends_the_runner_and_the_next_one_works(gpu: nvml.Machine) -> None:
    app = f"{Path(__file__).with_name('broken_app.py')}::Breaks"
    with alone(app, 'backoff_min = "500ms"\nbackoff_max = "500ms"\n') as f:
        assert f.post("/").json == 8
        assert f.post("/refused").status == 500, "an error of one call breaks nothing"
        assert f.post("/").json == 8
        assert f.life(0).epoch == 1
        assert f.post("/break").status == 503
        f.wait_line(f"exited with code {EXIT_CARD_BROKEN} .its GPU failed")
        until(lambda: f.life(0).epoch > 1, within_s=60.0, what="another takes its place")
        f.wait_state(0, "ready", within_s=START_S)
        assert f.post("/", timeout_s=60.0).json == 8


def test_a_drawing_that_is_cancelled_stops_and_the_card_draws_the_next(gpu: nvml.Machine) -> None:
    with alone() as f:
        _, first = draw(f, "digits-ink")
        job = f.post("/queue/me/app", prompt(STEPS, images=16)).json["request_id"]
        followed = Followed(f, job)
        followed.draws()
        assert f.put(f"/queue/me/app/requests/{job}/cancel").status == 202
        assert followed.end()["outcome"] == "cancelled"
        assert followed.last_step < STEPS
        assert draw(f, "digits-ink")[1].tobytes() == first.tobytes()
