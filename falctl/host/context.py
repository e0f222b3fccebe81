"""What an app gets as ``self.runner``: the configuration's part in it, its model caches, its progress reports."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from falctl.app import SimulatedCosts
from falctl.clock import monotonic_s
from falctl.config import UNCOUNTED_MODELS_MAX, Config
from falctl.core.residency import Verdict
from falctl.host.app_threads import AppThreads
from falctl.host.hint_source import HintSource
from falctl.host.report import Report
from falctl.host.ticket import CURRENT
from falctl.toolkit import ModelCache, ModelSource, RequestCancelled
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy, Kept
from falctl.toolkit.opaque_store import OpaqueStore
from falctl.wire import HostSpec

if TYPE_CHECKING:
    from falctl.host.cache.host_memory import HostMemory

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
        self._dtype = config.models.dtype
        self._cpu_bytes = spec.cpu_bytes
        costs = config.simulated
        self.simulated = SimulatedCosts(costs.load_s, costs.exec_s, costs.size)
        self._models_max = config.cache_of(spec.alias).max_models
        self._hooks = CacheHooks(
            changed=self._cache_changed, leased=_leased, kept=_kept, cancelled=_cancelled, run=threads.run
        )
        self._report = report
        self._hints = hints
        self._threads = threads
        self.memory_channel: socket.socket | None = None
        """Where the supervisor gives host memory that runners share; None: this runner has its own."""

    @cached_property
    def host_memory(self) -> HostMemory:
        """Return where this runner gets host memory for weights; imports torch."""
        from falctl.host.cache.private_memory import PrivateMemory
        from falctl.host.cache.shared_memory import SharedMemory

        return PrivateMemory() if self.memory_channel is None else SharedMemory(self.memory_channel)

    def model_cache(
        self,
        load: Callable[[str], M] | None = None,
        *,
        unload: Callable[[M], None] | None = None,
        check: Callable[[str], object] | None = None,
        overlaps: bool = False,
    ) -> ModelCache[M]:
        """Return a cache that publishes the hints whenever it changes; see `RunnerContext`."""
        return self._serve(
            ModelCache(
                OpaqueStore(load, unload=unload, check=check),
                overlaps=overlaps,
                policy=CachePolicy(models_max=self._models_max or UNCOUNTED_MODELS_MAX),
                hooks=self._hooks,
            )
        )

    def pipeline_cache(self, find: Callable[[str], ModelSource]) -> ModelCache[Any]:
        """Return a cache of diffusers pipelines that publishes the hints whenever it changes; see `RunnerContext`."""
        # Only what an app asks for is imported: torch and diffusers take seconds.
        from falctl.host.cache.opening import open_store

        store = open_store(
            find,
            memory=self.host_memory,
            dtype=self._dtype,
            cuda=self.device == "cuda",
            cpu_bytes=self._cpu_bytes,
        )
        return self._serve(
            ModelCache(store, policy=CachePolicy(models_max=self._models_max), hooks=self._hooks)
        )

    def progress(self, step: int, steps: int) -> None:
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
        self._report.step_done()

    def _serve(self, cache: ModelCache[M]) -> ModelCache[M]:
        self._report.caches.append(cache)
        return cache

    def _cache_changed(self) -> None:
        if self._threads.inside or not self._hints.given:
            self._tell()
        else:
            self._threads.submit(self._tell)  # `provide_hints` is called on the app's threads only

    def _tell(self) -> None:
        self._report.soon(self._report.changed, self._hints.ask() if self._hints.given else None)


def _kept() -> Kept | None:
    return None if (ticket := CURRENT.get()) is None else ticket.kept


def _cancelled() -> threading.Event:
    return threading.Event() if (ticket := CURRENT.get()) is None else ticket.stops


def _leased(name: str, verdict: Verdict, load_s: float) -> None:
    if (ticket := CURRENT.get()) is not None:
        ticket.leased(name, verdict, load_s)
