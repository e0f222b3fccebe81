"""The demo models on a real card: pins that torch and NVML agree on, VRAM that is seen, and given back."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import pynvml
import pytest
from PIL import Image

from falctl.supervisor import nvml
from falctl.supervisor.xid_watch import _registered
from tests.process.harness import Falctl
from tests.wait import until

pytestmark = [pytest.mark.gpu, pytest.mark.process, pytest.mark.timeout(400)]

APP: Final = "runners.diffusion:AnyModelRunner"
MODELS: Final = ("digits-classic", "digits-ink", "digits-ember", "digits-blueprint")
START_S: Final = 240.0
"""Two imports of torch and diffusers, from a cold disk."""
FREED_S: Final = 20.0
"""The driver takes the memory of a dead process back a moment after its end."""
MiB: Final = 1 << 20
CONTEXT_BYTES: Final = 100 * MiB
"""Less than any CUDA context takes (128 to 300 MiB, pytorch #86509)."""
NOISE_BYTES: Final = 64 * MiB
"""What others on this card may change meanwhile."""

ASK_TORCH: Final = "import torch; print(torch.cuda.is_available())"


@cache
def has_cuda() -> bool:
    """Ask in another process: a context in this one would hold VRAM."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout.strip() == "True"


@pytest.fixture
def gpu() -> nvml.Machine:
    """The machine, if torch can use its cards."""
    if not has_cuda():
        pytest.skip("no CUDA device")
    machine = nvml.probe_within(60.0)
    assert machine is not None, "torch has a CUDA device, NVML has no driver"
    return machine


def start(config: str = "") -> Falctl:
    return Falctl(APP, config=f"[runners]\ngpus = [0, 0]\n{config}", start=False)


def used_bytes(machine: nvml.Machine) -> int:
    return nvml.sample(machine.cards[0].uuid).used_bytes


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
    until(lambda: used_bytes(gpu) <= before + NOISE_BYTES, within_s=FREED_S, what="the VRAM is back")


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
    until(lambda: used_bytes(gpu) <= before + NOISE_BYTES, within_s=FREED_S, what="all VRAM is back")


def test_killing_the_supervisor_leaves_no_vram_behind(gpu: nvml.Machine) -> None:
    before = used_bytes(gpu)
    with start() as f:
        f.start()
        f.wait_ready(within_s=START_S)
        assert used_bytes(gpu) >= before + 2 * CONTEXT_BYTES, "each runner has proved its pin in a context"
        f.kill()
        f.assert_nothing_left()
    until(lambda: used_bytes(gpu) <= before + NOISE_BYTES, within_s=FREED_S, what="all VRAM is back")


def test_a_real_card_tells_of_its_xids(gpu: nvml.Machine) -> None:
    """That it would: nothing provokes one. The wait ends in time, and with the thread."""
    card = gpu.cards[0]
    events, concerned = _registered(card.uuid, [card])
    assert concerned == {card.uuid: None}
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 100)
    pynvml.nvmlEventSetFree(events)


def test_a_card_that_the_caller_hides_is_not_used(gpu: nvml.Machine) -> None:
    before = used_bytes(gpu)
    with Falctl("runners.echo:Echo", env={"CUDA_VISIBLE_DEVICES": ""}) as f:
        assert "falctl: no GPU is visible here: starting 2 CPU runners" in f.log
        assert used_bytes(gpu) <= before + NOISE_BYTES


@pytest.mark.parametrize("child", ["arena_child", "memory_child", "staging_child", "guest_child"])
def test_weights_swap_on_a_real_card(gpu: nvml.Machine, child: str) -> None:
    """In an arena; from shared host memory, registered with CUDA; of pipelines that do not fit; and given back."""
    before = used_bytes(gpu)
    done = subprocess.run(
        [sys.executable, "-m", f"tests.gpu.{child}"],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    until(lambda: used_bytes(gpu) <= before + NOISE_BYTES, within_s=FREED_S, what="the VRAM is back")
