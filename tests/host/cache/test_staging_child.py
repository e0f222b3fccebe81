"""The check that a card's test makes of staging holds on the CPU device, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from falctl.host.cache.device import CpuDevice
from tests.gpu.staging_child import check


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)
@pytest.mark.parametrize("name", ["flux-deep", "ddpm"])
def test_the_check_of_a_real_card_holds_here(folder_of: Callable[[str], Path], name: str) -> None:
    check(folder_of(name), name, CpuDevice, slack_bytes=0)
