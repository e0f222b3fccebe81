"""A drawing on a card tells its steps, shows itself, and stops within one, whatever the architecture."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.gpu.test_real_card import has_cuda

CANCEL_AT = 2


def seen_on(device: str) -> dict[str, dict[str, int]]:
    child = [sys.executable, "-m", "tests.gpu.steps_child", device, str(CANCEL_AT)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=300, check=True)
    seen: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.gpu
@pytest.mark.process
@pytest.mark.timeout(400)
def test_a_drawing_on_the_card_is_seen_and_stops_within_a_step() -> None:
    if not has_cuda():
        pytest.skip("no CUDA device")
    seen = seen_on("cuda")
    assert [drawn["calls"] for drawn in seen.values()] == [CANCEL_AT] * 6, seen
    assert all(drawn["pictures"] for drawn in seen.values()), seen
