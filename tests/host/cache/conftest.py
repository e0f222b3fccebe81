"""Tiny pipelines: each is written once per session, when first asked for, and loaded anew for every test."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a name of `tiny_pipelines.NAMES` to its folder."""
    from tests.host.cache import tiny_pipelines

    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: tiny_pipelines.write(root, name))
