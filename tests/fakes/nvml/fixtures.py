"""The fixtures of the fake NVML, for the conftest.py of a folder that uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.nvml import FakeCard, FakeNvml, build

MakeNvml = Callable[..., FakeNvml]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled once; without gcc the tests fail, because nothing else checks GPUs without a card."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def make_nvml(nvml_library: Path, tmp_path: Path) -> MakeNvml:
    """Return a function that makes a machine of the cards that it is given."""

    def make(*cards: FakeCard, init: int = 0, error: int = 0) -> FakeNvml:
        return FakeNvml(nvml_library, tmp_path / "nvml-state", list(cards), init=init, error=error)

    return make
