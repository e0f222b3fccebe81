"""What the tests on a card have in common: whether there is one, what of it is in use, children that use it."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Final

from falctl.supervisor import nvml
from tests.wait import until

MiB: Final = 1 << 20
CHILD_S: Final = 180.0
"""An import of torch and diffusers from a cold disk, and some drawings."""
FREED_S: Final = 20.0
"""The driver takes the memory of a dead process back a moment after its end."""
CONTEXT_BYTES: Final = 100 * MiB
"""Less than any CUDA context takes (128 to 300 MiB, pytorch #86509)."""
NOISE_BYTES: Final = 64 * MiB
"""What others on this card may change meanwhile."""

NEEDED: Final = "TESTS_NEED_A_CARD"
"""In the environment of a run that is there for the card: that there is none is a failure then."""

ASK_TORCH: Final = "import torch; print(torch.cuda.is_available())"


@cache
def has_cuda() -> bool:
    """Ask in another process: a context in this one would hold VRAM."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=300, check=False
    )
    return done.stdout.strip() == "True"


def used_bytes(machine: nvml.Machine) -> int:
    return nvml.sample(machine.cards[0].uuid).used_bytes


def wait_freed(machine: nvml.Machine, before_bytes: int) -> None:
    """Return when no more than *before_bytes* are in use, but for noise."""
    until(
        lambda: used_bytes(machine) <= before_bytes + NOISE_BYTES, within_s=FREED_S, what="the VRAM is back"
    )


def run_child(name: str, *arguments: str, within_s: float = CHILD_S) -> str:
    """Run ``tests.gpu.<name>`` to its end, in a process of its own, and return what it printed; asserts that it held."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.gpu.{name}", *arguments],
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
