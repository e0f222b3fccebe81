"""
What a `ModelCache` asks of the place that holds its models: the cache decides, a store acts.

A model is made of *parts*, components that several models may share; an app's own objects are one part each. The moves,
with the tier that a part is in after each:

    construct   unknown -> ram or disk      runs the libraries; on an app's thread, one at a time in a process
    fill        disk    -> ram              moves bytes only; any thread, also beside an execution
    place       ram     -> vram             one allocation and one copy for each part that is not there
    place       disk    -> vram             likewise, its bytes copied as they are read; host memory has them, too, or not
    evict       vram    -> ram or disk      copies nothing back
    drop        ram     -> disk             host memory goes, the modules stay
    forget                -> unknown        all of a model that no other shares

The first three are told by an event that the request they are for is cancelled: they end at their next step then, by
whatever error, and what they had begun is as if they had not. Parts that were brought before stay where they came to.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol, TypeVar

from falctl.core.activations import Drawing
from falctl.core.fit import How
from falctl.core.residency import Part

M_co = TypeVar("M_co", covariant=True)


class ModelStore(Protocol[M_co]):
    """Holds models by name. Calls come one at a time, but for `fill` and the questions, which any thread may ask."""

    @property
    def free_bytes(self) -> int | None:
        """Return what the device has free for parts and drawings now; None: this store counts no bytes."""
        ...

    @property
    def total_bytes(self) -> int | None:
        """Return what the device could have free, if no model were there; None: as above."""
        ...

    @property
    def drawn_bytes(self) -> int:
        """Return what is taken of the device beside parts, by drawings; 0 where that is part of `free_bytes`."""
        ...

    def check(self, name: str) -> None:
        """Raise what a load of *name* is bound to raise for a wrong name or a damaged folder; blocks for a stat or so."""
        ...

    def needs(self, name: str) -> tuple[Part, ...]:
        """Return the parts of *name*, also before it is constructed (from its files' headers); () where nobody knows."""
        ...

    def peak_bytes(self, name: str, drawing: Drawing | None) -> int:
        """Return what *drawing* takes beside the weights; learnt, else a formula's; None: the model's usual drawing."""
        ...

    def parts(self) -> Mapping[str, Part]:
        """Return every part that is held, by key, as it is now."""
        ...

    def module_bytes(self, name: str) -> int:
        """Return what *name*, which is constructed, holds beside its parts: modules, vocabularies; roughly."""
        ...

    def is_constructed(self, name: str) -> bool:
        """Return whether the modules of *name* stand."""
        ...

    def moved(self) -> Mapping[str, int]:
        """
        Return how many bytes of each part were read and copied since it began to come from the disk, by key.

        As it is now; asked after `parts`, so that none is there and counted as on its way, too.
        """
        ...

    def construct(self, name: str, cancelled: threading.Event | None = None) -> None:
        """Make the modules of *name*; blocking. Raises a RequestError for a folder that cannot be used."""
        ...

    def fill(self, name: str, cancelled: threading.Event) -> None:
        """Read into host memory what *name* has on the disk only; blocking. Raises as `construct`, or when cancelled."""
        ...

    def place(
        self,
        name: str,
        how: How = "whole",
        *,
        filling: bool = False,
        cancelled: threading.Event | None = None,
    ) -> M_co:
        """
        Return the model *name*, ready to run on the device; blocks for the copies, and for what has to be read.

        What is read stays in host memory if *filling*, for which HostMemoryFullError is raised where it has no room; else
        it passes through. Raises torch.OutOfMemoryError, before that part is read; and as `fill`.
        """
        ...

    def evict(self, key: str) -> None:
        """Take the part *key* off the device, if it is there; returns when its memory can be had again."""
        ...

    def drop(self, key: str) -> None:
        """Let go of the host memory of the part *key*, on the device or not, if its files can bring it back."""
        ...

    def forget(self, name: str) -> None:
        """Let go of the model *name*, with the parts that no other model has."""
        ...
