"""What an app gets as ``self.runner``: the configuration's part in it, its model caches, its progress reports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from falctl.app import SimulatedCosts
from falctl.clock import monotonic_s
from falctl.config import UNCOUNTED_MODELS_MAX, Config
from falctl.core.residency import Verdict
from falctl.host.app_threads import AppThreads
from falctl.host.hint_source import HintSource
from falctl.host.previews import make_preview
from falctl.host.report import Report
from falctl.host.ticket import CURRENT
from falctl.toolkit import ModelCache, RequestCancelled
from falctl.toolkit.model_cache import CacheHooks
from falctl.toolkit.steps import Preview, StepEnd, watched
from falctl.wire import HostSpec

M = TypeVar("M")


class Context:
    """A `falctl.app.RunnerContext`."""

    def __init__(
        self, spec: HostSpec, config: Config, *, report: Report, hints: HintSource, threads: AppThreads
    ) -> None:
        self.runner = spec.runner
        self.device = "cuda" if spec.cards else "cpu"
        self.models_paths: tuple[Path, ...] = config.models.paths
        self.models_allow = config.models.allow
        self.models_dtype: str = config.models.dtype
        costs = config.simulated
        self.simulated = SimulatedCosts(costs.load_s, costs.exec_s, costs.size)
        self._models_max = config.cache_of(spec.alias).max_models or UNCOUNTED_MODELS_MAX
        self._report = report
        self._hints = hints
        self._threads = threads

    def model_cache(
        self,
        load: Callable[[str], M],
        *,
        unload: Callable[[M], None] | None = None,
        check: Callable[[str], object] | None = None,
        overlaps: bool = False,
    ) -> ModelCache[M]:
        """Return a cache that publishes the hints whenever it changes; see `RunnerContext`."""
        hooks = CacheHooks(changed=self._cache_changed, leased=_leased)
        cache = ModelCache(
            load, unload=unload, check=check, models_max=self._models_max, overlaps=overlaps, hooks=hooks
        )
        self._report.caches.append(cache)
        return cache

    @property
    def cancelled(self) -> bool:
        """Return whether the request served by this thread has been cancelled."""
        ticket = CURRENT.get()
        return ticket is not None and ticket.cancelled

    def progress(self, step: int, steps: int, preview: Preview | None = None) -> None:
        """
        Report *step* of *steps*; see `RunnerContext`.

        Raises:
            RequestCancelled: the client has cancelled the request.
        """
        if (ticket := CURRENT.get()) is None:
            return
        if ticket.cancelled:
            raise RequestCancelled
        ticket.step, ticket.steps, ticket.progress_at = step, steps, monotonic_s()
        self._report.step_done(ticket, make_preview(ticket, preview))

    def steps(
        self,
        pipeline: object,
        *,
        total: int | None = None,
        size: tuple[int, int] | None = None,
        callback: StepEnd | None = None,
    ) -> AbstractContextManager[dict[str, Any]]:
        """Report each step of a diffusers pipeline; see `RunnerContext`."""
        return watched(pipeline, self.progress, total=total, size=size, callback=callback)

    def _cache_changed(self) -> None:
        if self._threads.inside or not self._hints.given:
            self._tell()
        else:
            self._threads.submit(self._tell)  # `provide_hints` is called on the app's threads only

    def _tell(self) -> None:
        self._report.soon(self._report.changed, self._hints.ask() if self._hints.given else None)


def _leased(name: str, verdict: Verdict, load_s: float) -> None:
    if (ticket := CURRENT.get()) is not None:
        ticket.leased(name, verdict, load_s)
