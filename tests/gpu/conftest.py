from __future__ import annotations

import os

import pytest

from falctl.supervisor import nvml
from tests.gpu.card import NEEDED, has_cuda


@pytest.fixture
def gpu() -> nvml.Machine:
    """The machine, if torch can use its cards."""
    machine = nvml.probe_within(60.0)
    if machine is None or not has_cuda():
        assert NEEDED not in os.environ, f"NVML sees {machine}, torch says that CUDA is not available"
        pytest.skip("no CUDA device")
    return machine
