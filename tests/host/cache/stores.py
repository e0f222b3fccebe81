"""A `PipelineStore` over the tiny pipelines, on a CPU device with a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from falctl.errors import NotFoundError
from falctl.host.cache.device import CpuDevice
from falctl.host.cache.estimate import Wanted
from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.private_memory import PrivateMemory

FolderOf = Callable[[str], Path]
PLENTY = 1 << 30


@dataclass(frozen=True, slots=True)
class Folder:
    """A `Source`."""

    place: str
    local: bool = True
    loras: tuple[str, ...] = ()


def store_of(
    folders: Mapping[str, Path] | FolderOf,
    *,
    device: CpuDevice | None = None,
    memory: HostMemory | None = None,
    dtype: Wanted = "float32",
) -> PipelineStore:
    """Return a store that looks a name up in *folders*."""

    def find(name: str) -> Folder:
        try:
            return Folder(str(folders(name) if callable(folders) else folders[name]))
        except KeyError as error:
            raise NotFoundError(name) from error

    return PipelineStore(
        find, device=device or CpuDevice(PLENTY), memory=memory or PrivateMemory(), dtype=dtype
    )


def bring(store: PipelineStore, name: str) -> Any:
    """Return the pipeline *name* on the device, from wherever it is."""
    store.construct(name)
    store.fill(name, threading.Event())
    return store.place(name)


def keys_of(store: PipelineStore, name: str) -> list[str]:
    return [part.key for part in store.needs(name)]


def leave(store: PipelineStore, name: str, *, drop: bool = False) -> None:
    """Evict every part of *name*, and drop it from host memory, too."""
    for key in keys_of(store, name):
        store.evict(key)
        if drop:
            store.drop(key)


def tiers(store: PipelineStore, name: str) -> set[str]:
    return {part.tier for part in store.needs(name)}
