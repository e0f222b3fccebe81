"""Another program on the card wants its memory: idle models leave, the router not asked."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fakes.nvml import GiB, card
from tests.fakes.nvml.fixtures import MakeNvml
from tests.process.harness import REPOSITORY, Falctl
from tests.wait import until

pytestmark = pytest.mark.process

APP = "runners.simulated:SimulatedModels"
CUDA_TORCH = REPOSITORY / "tests" / "fakes" / "cuda_torch"


def held(f: Falctl) -> set[str]:
    row = f.board().runner(0)
    return set() if row is None else {model.name for model in row.models if model.state == "ready"}


def test_idle_models_leave_when_others_want_the_card_even_while_the_router_is_stopped(
    make_nvml: MakeNvml,
) -> None:
    machine = make_nvml(card(0, used_bytes=40 * GiB))
    config = '[simulated]\nload_s = 0\nexec_s = 0\n[cache]\nmax_models = 3\nreserve_vram = "2GiB"\n'
    with Falctl(APP, config=config, env=machine.environ, python_path=[CUDA_TORCH]) as f:
        for model in ("a", "b", "c"):
            assert f.post("/", {"model": model}).status == 200
        assert held(f) == {"a", "b", "c"}
        until(lambda: f.gpu(0).used_bytes == 40 * GiB, within_s=30.0, what="a calm sample")
        router = f.pids()["router"]
        os.kill(router, signal.SIGSTOP)
        machine.change(0, used_bytes=79 * GiB)
        until(lambda: "a" not in held(f), within_s=60.0, what="the least recently used has left")
        machine.change(0, used_bytes=40 * GiB)
        f.wait_line("cache.gave_way bytes=")
        os.kill(router, signal.SIGCONT)
        reply = f.post("/", {"model": "a"})
        assert (reply.status, reply.headers["x-falctl-cache"]) == (200, "disk")
