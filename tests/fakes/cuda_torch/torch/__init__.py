"""
As much of a CUDA build of torch as falctl asks for the proof of its pins (falctl/host/pins.py).

That proof is the one step between `falctl up` and a ready GPU runner that needs a real card, because CUDA itself
chooses the devices. This module, put first on PYTHONPATH, chooses as CUDA does, from CUDA_VISIBLE_DEVICES and the
cards of the fake NVML; all else in a test, the refusal of a CPU build of torch included, is the real thing.
tests/gpu does the same with a real card and the real torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

__version__ = "2.11.0+fake"

version = SimpleNamespace(cuda="13.0", hip=None)


def _visible() -> list[str]:
    """Return the UUIDs that CUDA would show: up to the first entry that names no card, or more than one."""
    cards = _cards()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return [uuid for uuid in cards if uuid.startswith("GPU-")]
    found: list[str] = []
    for entry in wanted.split(","):
        matches = [uuid for uuid in cards if entry and uuid.startswith(entry)]
        if len(matches) != 1 or matches[0] in found:
            break
        found.append(matches[0])
    return found


def _cards() -> list[str]:
    """Return the UUID of every card and MIG instance that works; $FAKE_CUDA_HIDES is one that CUDA cannot use."""
    known = [each["uuid"] for each in _lines() if each.get("error", "0") == "0"]
    return [uuid for uuid in known if uuid != os.environ.get("FAKE_CUDA_HIDES")]


def _lines() -> list[dict[str, str]]:
    lines = Path(os.environ["FAKE_NVML_STATE"]).read_text().splitlines()
    words = [dict(word.split("=", 1) for word in line.split()[1:]) for line in lines]
    return [each for each in words if "uuid" in each]


def _properties(index: int) -> SimpleNamespace:
    uuid = _visible()[index]
    if uuid == os.environ.get("FAKE_CUDA_BREAKS"):
        msg = "CUDA error: uncorrectable ECC error encountered\nCompile with `TORCH_USE_CUDA_DSA`"
        raise RuntimeError(msg)
    if uuid.startswith("MIG-") and "FAKE_CUDA_NAMES_PARENTS" in os.environ:
        before = [each["uuid"] for each in _lines()]
        uuid = [each for each in before[: before.index(uuid)] if each.startswith("GPU-")][-1]
    return SimpleNamespace(uuid=uuid.split("-", 1)[1], name="Fake CUDA card")


cuda = SimpleNamespace(
    is_available=lambda: bool(_visible()),
    device_count=lambda: len(_visible()),
    get_device_properties=_properties,
    is_initialized=lambda: True,
    memory_reserved=lambda _device: 0,
)
