"""Promises of a process that is killed, or whose disk is full, are kept by the one after it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from falctl.core.types import RequestId
from falctl.router.jobs.store import JobStore
from tests.router.job_child import LIMITS, body_of

ROOT = Path(__file__).parent.parent.parent


def child(folder: Path, what: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.router.job_child", str(folder), what]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def kept(folder: Path, said: list[str]) -> None:
    """Assert that the store has what was *said*, and nothing that is neither whole nor gone."""

    async def look() -> None:
        store = JobStore(folder, LIMITS)
        alive = {found.request: found for found in store.recover()}
        for what, request in (line.split() for line in said):
            found = await store.find(RequestId(request))
            assert found is not None, line_of(what, request)
            if what == "end":
                assert found.ending is not None
            if what == "attempt" and found.ending is None:
                assert found.attempts == 1
            if found.ending is None:
                assert await store.body(found.request) == body_of(request)
            else:
                answer = await store.answer(found.request)
                assert answer is not None
                assert answer.body == body_of(request)
        for request in alive:
            assert await store.body(request) == body_of(request), "nobody was told of it, but it is whole"
        store.close()

    asyncio.run(look())


def line_of(what: str, request: str) -> str:
    return f"{what} {request} was acknowledged and is not there"


@pytest.mark.process
@pytest.mark.parametrize("seed", range(5))
def test_what_was_acknowledged_before_kill_9_is_there_after_it(tmp_path: Path, seed: int) -> None:
    said: list[str] = []
    for lines in (Random(seed).randrange(1, 300) for _ in range(2)):
        process = child(tmp_path, "until-killed")
        assert process.stdout is not None
        said += [process.stdout.readline().decode() for _ in range(lines)]
        process.kill()
        said += process.stdout.read().decode().splitlines(keepends=True)
        process.wait()
        process.stdout.close()
        kept(tmp_path, [line for line in said if line.endswith("\n")])


@pytest.mark.process
def test_a_full_disk_refuses_and_spoils_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.router.job_child", str(tmp_path), "until-full"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    said = done.stdout.splitlines()
    full = said.index("full -")
    assert full > 0, "some found room"
    assert len([line for line in said[full:] if line.startswith("job")]) == 16, (
        "and again when there was some"
    )
    kept(tmp_path, [line for line in said if line != "full -"])
