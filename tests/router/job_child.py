"""
A process that submits jobs as fast as it can and says each promise it was given: ``job ID``, ``attempt ID``, ``end ID``.

    python -m tests.router.job_child FOLDER until-killed|until-full
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import sys
import uuid
from pathlib import Path

from falctl.core.retries import Outcome
from falctl.core.types import RequestId
from falctl.errors import StorageFullError
from falctl.router.jobs.records import Answer, Ending, NewJob, StoreLimits
from falctl.router.jobs.store import JobStore

LIMITS = StoreLimits(keep_s=3600.0, max_bytes=1 << 30)
FILE_BYTES_MAX = 1 << 20
SUBMITTERS = 16


def body_of(request: str) -> bytes:
    """Return a body that only this request can have; every fourth is large enough for a file."""
    seed = hashlib.sha256(request.encode()).digest()
    return seed * (3000 if seed[0] % 4 == 0 else 30)


def say(what: str, request: str) -> None:
    os.write(1, f"{what} {request}\n".encode())


async def use(store: JobStore) -> None:
    """Lead one job as far as its id says."""
    request = RequestId(str(uuid.uuid4()))
    body = body_of(request)
    await store.submit(NewJob(request, b"{}", body))
    say("job", request)
    if body[1] % 2:
        await store.begin_attempt(request, attempts=1, failures={})
        say("attempt", request)
    if body[1] % 4 == 3:
        await store.end(request, Ending(Outcome(200), 0.1, 1e9), Answer((("a", "b"),), body))
        say("end", request)


async def until_killed(store: JobStore) -> None:
    async def submitter() -> None:
        while True:
            await use(store)

    await asyncio.gather(*(submitter() for _ in range(SUBMITTERS)))


async def until_full(store: JobStore) -> None:
    """Use files of a bounded size, the disk full in a way; then without that bound again."""

    async def submitter() -> None:
        while True:
            await use(store)

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, hard))
    ends = await asyncio.gather(*(submitter() for _ in range(SUBMITTERS)), return_exceptions=True)
    assert all(isinstance(end, StorageFullError) and end.status == 507 for end in ends), ends
    say("full", "-")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await asyncio.gather(*(use(store) for _ in range(SUBMITTERS)))
    store.close()


async def main(folder: Path, what: str) -> None:
    store = JobStore(folder, LIMITS)
    await (until_killed if what == "until-killed" else until_full)(store)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
