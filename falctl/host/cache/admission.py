"""
Whether a pipeline and a drawing fit, in which way, and what becomes of a drawing that ran out of memory all the same.

The ladder is `falctl.core.fit`'s, over what the store knows of the model and what was learnt of such drawings. After
memory ran out: everything idle has left; what is expected of such drawings is raised, so that they are given more room
or run in another way from then on; the drawing is tried again, then in tiles, and then it is a 507 that says all that.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias

from falctl.core.activations import LEAST, Drawing
from falctl.core.fit import DrawingPeaks, Plan, TooLarge, fit
from falctl.core.peaks import Kind, LearntPeaks, expected_peaks
from falctl.core.residency import Room
from falctl.core.sizes import size_text
from falctl.errors import ModelTooLargeError
from falctl.host.cache.arrangement import Arrangement
from falctl.host.cache.peak_file import PeakFile
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.toolkit.cache_hooks import Admitted, CachePolicy, OutOfMemory
from falctl.toolkit.out_of_memory import runs_out_of_memory

log = logging.getLogger(__name__)

_RETRIES: Final = 2
"""As it was, then in tiles."""
_PLANS_MAX: Final = 1024
"""Remembered of drawings, and of models; those that are not asked for any more are forgotten."""
_DETAIL_MAX: Final = 200
"""Characters of what the allocator said."""

_Asked: TypeAlias = tuple[str, Drawing | None]


@dataclass(slots=True)
class _Trouble:
    """A drawing that ran out of memory and is being tried again."""

    plan: Plan
    """How it ran the last time."""
    tried: list[str] = field(default_factory=list)
    tiles: bool = False
    """It is to be decoded in tiles."""


class Admission:
    """Decides for the models of *store*."""

    def __init__(
        self,
        store: PipelineStore,
        *,
        peaks: LearntPeaks | None = None,
        folder: Path | None = None,
        counts_drawings: bool = True,
    ) -> None:
        """
        Learn into *peaks*, and keep that in *folder*; None: for this process.

        *counts_drawings* False: what drawings take is no part of the device's memory.
        """
        self._store = store
        self._peaks = LearntPeaks() if peaks is None else peaks
        self._file = None if folder is None else PeakFile(folder, self._peaks)
        self._counts_drawings = counts_drawings
        self._lock = threading.Lock()  # of what was learnt
        self._plans: dict[_Asked, Plan] = {}
        self._troubles: dict[_Asked, _Trouble] = {}
        self._told: dict[str, Plan] = {}
        if self._file is not None:
            self._file.recall()

    def policy(self, base: CachePolicy) -> CachePolicy:
        """Return *base* with these decisions."""
        return replace(
            base, admit=self.admit, arrange=self.arrange, around=self.measured, recover=self.recover
        )

    def admit(self, name: str, drawing: Drawing | None, room: Room) -> Admitted:
        """
        Return how *name* can run in *room*; changes nothing.

        Raises:
            ModelTooLargeError: it does not fit in any way.
        """
        peaks = self._expected(name, drawing)
        trouble = self._troubles.get((name, drawing))
        plan = self._plan(name, peaks, room, trouble)
        if isinstance(plan, TooLarge):
            tried = "; ".join((*plan.tried, *self._store.left_out(name)))
            msg = f"Model {name!r} has no room: {room.told(plan.least_bytes)}; tried: {tried}"
            alone = self._plan(name, self._expected(name, LEAST), room, None)
            least_bytes = alone.least_bytes if isinstance(alone, TooLarge) else None
            raise ModelTooLargeError(msg, model=name, least_bytes=least_bytes)
        # After memory ran out it is placed anew, for another model may have changed what both have.
        attempts = 0 if trouble is None else len(trouble.tried)
        detail = (plan.tiled, plan.weights, plan.offloaded, attempts)
        return Admitted(plan.how, plan.nbytes, detail=detail, plan=Arrangement(plan, peaks))

    def arrange(self, name: str, drawing: Drawing | None, admitted: Admitted) -> None:
        """Have *name*, which stands, run as it was *admitted* from now on, and say so in the log if that is news."""
        arrangement: Arrangement = admitted.plan
        self._plans.pop((name, drawing), None)
        self._plans[name, drawing] = arrangement.plan
        while len(self._plans) > _PLANS_MAX:
            del self._plans[next(iter(self._plans))]
        self._store.arrange(name, arrangement)
        self._tell(name, arrangement.plan)

    @contextmanager
    def measured(self, name: str, drawing: Drawing | None, alone: Callable[[], bool]) -> Iterator[None]:
        """
        Learn what *drawing* takes in this block beside the weights, if it ends well.

        Only where the device sees drawings, where the weights stay as they are meanwhile (whole models), and while
        nobody else draws or loads, whose bytes would count as its own: until the end, it was *alone*.
        """
        plan = self._plans.get((name, drawing))
        learns = self._store.device.measures_drawings and plan is not None and plan.how == "whole"
        weights = self._store.device.used_bytes if learns else 0
        if learns:
            self._store.device.reset_peak()
        try:
            yield
        except BaseException as error:
            if not runs_out_of_memory(error):
                self._troubles.pop((name, drawing), None)
            raise
        self._troubles.pop((name, drawing), None)
        if (
            learns
            and alone()
            and plan is not None
            and (kind := self._kind(name, drawing, tiled=plan.tiled)) is not None
        ):
            took = self._store.device.peak_bytes - weights
            self._learn(lambda: self._peaks.seen(kind, took))

    def recover(self, facts: OutOfMemory) -> Literal["retry", "raise"]:
        """
        Collect, expect more of such drawings, and say whether to try again; everything idle has left before.

        Raises:
            ModelTooLargeError: there is nothing left to try; it says what was.
        """
        gc.collect()
        self._store.device.give_back()
        asked = facts.name, facts.drawing
        plan = self._plans.get(asked)
        if plan is None:
            return "retry" if facts.attempt == 1 else "raise"
        expected = self._learn_more(facts.name, facts.drawing, plan)
        if facts.attempt == 1:
            self._troubles[asked] = _Trouble(plan)
            while len(self._troubles) > _PLANS_MAX:
                del self._troubles[next(iter(self._troubles))]
        trouble = self._troubles.setdefault(asked, _Trouble(plan))
        trouble.plan = plan
        trouble.tried.append(f"{plan.name}, {size_text(expected)} expected for the drawing")
        told = facts.detail.splitlines()[0][:_DETAIL_MAX] if facts.detail else "no more is known"
        tiles_help = self._tiles_help(facts.name, facts.drawing, plan)
        if facts.attempt < _RETRIES or (facts.attempt == _RETRIES and tiles_help):
            trouble.tiles = facts.attempt == _RETRIES
            what = "in tiles" if trouble.tiles else "once more"
            log.warning(
                "model.out_of_memory model=%s attempt=%d how=%s: %s; everything idle has left; %s",
                facts.name,
                facts.attempt,
                plan.name,
                told,
                what,
            )
            return "retry"
        del self._troubles[asked]
        msg = (
            f"Model {facts.name!r} ran out of memory in every way that was tried: {'; '.join(trouble.tried)}. "
            f"{size_text(self._store.device.free_bytes)} of the device are free now, "
            f"{size_text(self._store.total_bytes)} could be. The last time: {told}"
        )
        raise ModelTooLargeError(msg)

    def _plan(self, name: str, peaks: DrawingPeaks, room: Room, trouble: _Trouble | None) -> Plan | TooLarge:
        if trouble is not None and trouble.tiles:
            # As if decoding it whole took all that there is, so that only the ways with tiles are left.
            peaks = replace(peaks, decode=max(peaks.decode, room.most_bytes + 1))
        plan = self._fitting(name, peaks, room)
        if isinstance(plan, TooLarge) and trouble is not None:
            # It was raised because memory ran out; the same way is still worth the try that it was promised.
            return replace(trouble.plan, tiled=trouble.plan.tiled or trouble.tiles)
        return plan

    def _fitting(self, name: str, peaks: DrawingPeaks, room: Room) -> Plan | TooLarge:
        """Return how *name* fits, with its quantised weights only if it is loaded with them or must be."""
        plain, loaded = self._store.sizes(name), self._store.loaded_weights(name)
        if loaded is None:
            plan = fit(plain, peaks, available_bytes=room.most_bytes)
            if isinstance(plan, Plan) and plan.how != "offloaded":
                return plan  # the headers of other files need not be read
        quantised = self._store.quantised(name)
        return fit(plain, peaks, available_bytes=room.most_bytes, quantised=quantised, loaded=loaded)

    def _expected(self, name: str, drawing: Drawing | None) -> DrawingPeaks:
        draws = self._store.draws(name, drawing)
        if draws is None or not self._counts_drawings:
            return DrawingPeaks()
        with self._lock:
            return expected_peaks(self._peaks, draws)

    def _kind(self, name: str, drawing: Drawing | None, *, tiled: bool) -> Kind | None:
        draws = self._store.draws(name, drawing)
        return None if draws is None else draws.kind(tiled=tiled)

    def _learn_more(self, name: str, drawing: Drawing | None, plan: Plan) -> int:
        """Raise what is expected of such drawings; return what was."""
        peaks = self._expected(name, drawing)
        decode = peaks.decode_tiled if plan.tiled else peaks.decode
        expected = max(peaks.encode, peaks.denoise, decode)
        kind = self._kind(name, drawing, tiled=plan.tiled)
        if kind is not None and self._counts_drawings:
            self._learn(lambda: self._peaks.ran_out(kind, expected))
        return expected

    def _tiles_help(self, name: str, drawing: Drawing | None, plan: Plan) -> bool:
        decodes = any(part.role == "decoder" for part in self._store.sizes(name))
        peaks = self._expected(name, drawing)
        return decodes and not plan.tiled and (not self._counts_drawings or peaks.decode_tiled < peaks.decode)

    def _learn(self, note: Callable[[], bool]) -> None:
        with self._lock:
            if note() and self._file is not None:
                self._file.keep()

    def _tell(self, name: str, plan: Plan) -> None:
        """Log how *name* runs, when that is news."""
        before = self._told.get(name)
        if (before is None and plan.name == "whole") or (before is not None and before.name == plan.name):
            return
        self._told.pop(name, None)
        self._told[name] = plan
        while len(self._told) > _PLANS_MAX:
            del self._told[next(iter(self._told))]
        slowdown = "".join(f"; {blocks.slowdown(self._store.device.copy_rate)}" for blocks in plan.offloaded)
        why = f" because {'; '.join(plan.tried)}" if plan.tried else ""
        log.warning(
            "model.arranged model=%s how=%s bytes=%s%s%s", name, plan.name, plan.nbytes, why, slowdown
        )
