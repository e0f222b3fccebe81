"""Hosts that several tests share; each ends with no request running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.harness import Host, idle

PROBE = "tests/host/probe_app.py"


@pytest.fixture(scope="module")
def probe_host() -> Iterator[Host]:
    with Host(f"{PROBE}::Probe") as host:
        yield host


@pytest.fixture
def probe(probe_host: Host) -> Iterator[Host]:
    yield probe_host
    idle(probe_host)


class Gate:
    """The test's side of `probe_app.Gate`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.body = {"folder": str(folder)}

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def open(self) -> None:
        (self.folder / "open").touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()
