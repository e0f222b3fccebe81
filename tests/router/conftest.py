"""Every test here talks to a real router process over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.router.fake_host import say_ok
from tests.router.harness import Setup, left_idle, serving


@pytest.fixture(scope="module")
def shared() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


@pytest.fixture
def plain(shared: Setup) -> Setup:
    """A router with the default configuration and one host with one slot, which says ok to everything."""
    shared.hosts[0].handler = say_ok
    shared.hosts[0].seen.clear()
    return shared


@pytest.fixture
def setup(shared: Setup) -> Iterator[Setup]:
    """The same router; a test that uses it leaves nothing waiting or running."""
    with left_idle(shared) as setup:
        yield setup
