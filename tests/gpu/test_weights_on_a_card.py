"""Weights and drawings on a real card, each in a process of its own: they swap, run out, give back, and stop."""

from __future__ import annotations

import json

import pytest

from falctl.supervisor import nvml
from tests.gpu.card import run_child, used_bytes, wait_freed

pytestmark = [pytest.mark.gpu, pytest.mark.process, pytest.mark.timeout(400)]

CANCEL_AT = 2
CHILDREN = {
    "arena_child": "a component swaps in an arena",
    "memory_child": "shared host memory is registered with CUDA by who fills it and by who finds it filled",
    "reload_child": "every architecture draws as ever from every tier",
    "staging_child": "pipelines that do not fit draw as ever",
    "out_of_memory_child": "what runs out of memory is tried again, then in tiles, then refused",
    "guest_child": "what was given back can be had by others",
}


@pytest.mark.parametrize("child", CHILDREN)
def test_weights_on_a_real_card(gpu: nvml.Machine, child: str) -> None:
    before = used_bytes(gpu)
    run_child(child)
    wait_freed(gpu, before)


def test_a_drawing_on_the_card_is_seen_and_stops_within_a_step(gpu: nvml.Machine) -> None:
    del gpu
    seen = json.loads(run_child("steps_child", "cuda", str(CANCEL_AT)).splitlines()[-1])
    assert [drawn["calls"] for drawn in seen.values()] == [CANCEL_AT] * 6, seen
    assert all(drawn["pictures"] for drawn in seen.values()), seen
