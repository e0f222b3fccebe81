"""What an app gets as ``self.runner``: the configuration's part in it, its model caches, its progress reports."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from falctl.app import SimulatedCosts
from falctl.clock import monotonic_s
from falctl.config import UNCOUNTED_MODELS_MAX, CacheConfig, Config
from falctl.config_values import KEEP_ALIVE_CHOICE, read_keep_alive
from falctl.core.residency import Verdict
from falctl.host.app_threads import AppThreads
from falctl.host.hint_source import HintSource
from falctl.host.previews import make_preview
from falctl.host.report import Report
from falctl.host.tending import Tending
from falctl.host.ticket import CURRENT
from falctl.toolkit import BadRequestError, ModelCache, ModelSource, RequestCancelled
from falctl.toolkit.cache_hooks import CacheHooks, CachePolicy, Kept
from falctl.toolkit.opaque_store import OpaqueStore
from falctl.toolkit.steps import Preview, StepEnd, watched
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
        self._state = Path(spec.state_dir) if spec.state_dir else None
        costs = config.simulated
        self.simulated = SimulatedCosts(costs.load_s, costs.exec_s, costs.size)
        cache = config.cache_of(spec.alias)
        self.tending = Tending(report.caches, threads)
        self._policy = CachePolicy(
            models_max=cache.max_models,
            keep_alive_s=partial(_keep_alive_s, cache),
            reserve_bytes=lambda: cache.reserve_vram if spec.cards else 0,
        )
        self._hooks = CacheHooks(
            changed=self._cache_changed,
            leased=_leased,
            idle=self.tending.wake,
            kept=_kept,
            holder=self._holder,
            cancelled=_cancelled,
            run=threads.run,
        )
        self._report = report
        self._hints = hints
        self._threads = threads
        self.memory_channel: socket.socket | None = None
        """Where the supervisor gives host memory that runners share; None: this runner has its own."""

    @cached_property
    def host_memory(self) -> HostMemory:
        """Return where this runner gets host memory for weights; imports torch, and measures the card's copies."""
        from falctl.host.cache.pinning import card_pinning
        from falctl.host.cache.private_memory import PrivateMemory
        from falctl.host.cache.shared_memory import SharedMemory

        if self.memory_channel is None:
            return PrivateMemory()
        return SharedMemory(self.memory_channel, pinning=card_pinning() if self.device == "cuda" else None)

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
                policy=replace(self._policy, models_max=self._policy.models_max or UNCOUNTED_MODELS_MAX),
                hooks=self._hooks,
            )
        )

    def pipeline_cache(self, find: Callable[[str], ModelSource], *, joint: str = "") -> ModelCache[Any]:
        """Return a cache of diffusers pipelines that publishes the hints whenever it changes; see `RunnerContext`."""
        # Only what an app asks for is imported: torch and diffusers take seconds.
        from falctl.host.cache.admission import Admission
        from falctl.host.cache.opening import open_store

        store = open_store(
            find,
            memory=self.host_memory,
            dtype=self._dtype,
            cuda=self.device == "cuda",
            cpu_bytes=self._cpu_bytes,
            state=self._state,
        )
        admission = Admission(store, folder=self._state)
        self._report.joint = joint
        return self._serve(ModelCache(store, policy=admission.policy(self._policy), hooks=self._hooks))

    def keep_alive(self, duration: str | float) -> None:
        """Let the models of this request idle for *duration*; see `RunnerContext`. Raises BadRequestError."""
        seconds = read_keep_alive(duration)
        if seconds is None:
            msg = f'keep_alive = {duration!r:.40} is no time to keep a model; write {KEEP_ALIVE_CHOICE}, as "10m"'
            raise BadRequestError(msg)
        if (ticket := CURRENT.get()) is not None:
            ticket.keep_alive_s = seconds

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

    def _holder(self) -> Hashable:
        """Return for whom this code leases: a request, a thread of the app's own; None: the app, as in ``setup``."""
        ticket = CURRENT.get()
        return ticket or (None if self._threads.inside else threading.get_ident())

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


def _keep_alive_s(cache: CacheConfig, name: str) -> float:
    """Return how long *name* may idle: as the request that is served wants it, else as configured."""
    ticket = CURRENT.get()
    if ticket is not None and ticket.keep_alive_s is not None:
        return ticket.keep_alive_s
    return cache.keep_alive_by.get(name, cache.keep_alive)


def _kept() -> Kept | None:
    return None if (ticket := CURRENT.get()) is None else ticket.kept


def _cancelled() -> threading.Event:
    return threading.Event() if (ticket := CURRENT.get()) is None else ticket.stops


def _leased(name: str, verdict: Verdict, load_s: float) -> None:
    if (ticket := CURRENT.get()) is not None:
        ticket.leased(name, verdict, load_s)
