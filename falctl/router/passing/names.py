"""The ids that clients choose for their requests: no two requests that anybody remembers have the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from falctl.core.types import RequestId
from falctl.errors import ConflictError
from falctl.router.dispatch.apps import Apps
from falctl.router.edge.call import Call
from falctl.router.jobs.store import JobStore
from falctl.router.passing.options import chosen_name


class Names:
    """Owner of the chosen ids whose requests are under way; of others it asks who knows them."""

    def __init__(self, apps: Apps, jobs: JobStore) -> None:
        self._apps = apps
        self._jobs = jobs
        self._taken: set[RequestId] = set()

    @asynccontextmanager
    async def chosen(self, call: Call) -> AsyncIterator[None]:
        """
        Let *call* have the id that it asks for, if it does, for the block.

        Raises:
            BadRequestError: that is no id.
            ConflictError: another request has it, or had it lately.
        """
        name = chosen_name(call.head)
        if name is None:
            yield
            return
        if name in self._taken:
            raise _taken(name)
        self._taken.add(name)  # before anybody is waited for
        try:
            if await self._is_known(name):
                raise _taken(name)
            call.request = name
            yield
        finally:
            self._taken.discard(name)

    async def _is_known(self, name: RequestId) -> bool:
        for scheduler in (app.driver.scheduler for app in self._apps):
            runners = scheduler.fleet.runners.values()
            # A router before us may have sent one that still runs.
            if scheduler.decisions.explain(name) is not None or any(name in r.in_use for r in runners):
                return True
        return await self._jobs.find(name) is not None


def _taken(name: RequestId) -> ConflictError:
    return ConflictError(f"X-Falctl-Request-Id: another request is called {name}; choose a new id for each")
