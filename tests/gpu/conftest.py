from __future__ import annotations

import pytest

from falctl.supervisor import nvml
from tests.gpu.card import has_cuda


@pytest.fixture
def gpu() -> nvml.Machine:
    """The machine, if torch can use its cards."""
    machine = nvml.probe_within(60.0)
    if machine is None or not has_cuda():
        pytest.skip("no CUDA device")
    return machine
