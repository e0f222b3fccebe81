"""A running fleet to look at: a process that holds the lock and keeps the board, without runners or router."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from falctl.home import Home

ROOT = Path(__file__).parents[2]


class Writer:
    """The process of tests/dashboard/writer.py."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        self.env = {"FALCTL_HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.dashboard.writer"],
            cwd=ROOT,
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._stdout.readline() == "ready\n"

    def hold(self, model: str) -> None:
        """Let runner 0 hold *model*."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(f"{model}\n")
        stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for end in (self.process.stdin, self._stdout):
            assert end is not None
            end.close()

    @property
    def _stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A directory whose name leaves room for the path of a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def writer(short_home: Path) -> Iterator[Writer]:
    started = Writer(short_home)
    yield started
    started.close()
