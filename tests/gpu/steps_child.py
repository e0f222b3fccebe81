"""Watches tiny pipelines draw on DEVICE, cancels each at STEP, and prints what it saw as JSON: ``python -m ... DEVICE STEP``."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from falctl.toolkit import RequestCancelled
from falctl.toolkit.steps import watched
from tests.host.cache import tiny_pipelines
from tests.host.cache.pipes import components

STEPS = 50


def watch(name: str, device: str, *, cancel_at: int) -> dict[str, Any]:
    pipe = tiny_pipelines.build(name)
    for part in components(pipe).values():
        part.eval()
    pipe.to(device, torch.bfloat16 if name != "ddpm" else torch.float32)
    pipe.set_progress_bar_config(disable=True)
    calls, pictures = 0, 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def report(step: int, _total: int, preview: Any) -> None:
        nonlocal pictures
        if step >= cancel_at:
            raise RequestCancelled
        pictures += preview is not None and preview() is not None

    (getattr(pipe, "unet", None) or pipe.transformer).register_forward_hook(count)
    settings: dict[str, Any] = {"num_inference_steps": STEPS}
    if "vae" in pipe.components:
        settings |= {"prompt": "a cat", "height": 64, "width": 64}
    try:
        with watched(pipe, report, total=STEPS) as extra:
            pipe(**settings, **extra)
    except RequestCancelled:
        return {"calls": calls, "pictures": pictures}
    return {"calls": -1, "pictures": pictures}


if __name__ == "__main__":
    device, at = sys.argv[1], int(sys.argv[2])
    print(json.dumps({name: watch(name, device, cancel_at=at) for name in tiny_pipelines.ARCHITECTURES}))
