"""The bytes of a skeleton, read from its files into a host buffer as they were when it was packed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from falctl.host.cache.arena import Arena
from falctl.host.cache.reading import Placement, read_weights


def read_again(
    arena: Arena, placements: Sequence[Placement], flat: torch.Tensor, cancelled: threading.Event
) -> None:
    """
    Fill *flat*, a buffer of *arena*'s length, with its weights; attaches nothing. Blocking; any thread.

    *placements* are what `find_placements` proved. When it raises, the contents of *flat* are undefined.

    Raises:
        ModelFilesError: a file is gone, or not what it was.
        LoadCancelledError: *cancelled* was set before all was read.

    """
    if placements:
        read_weights(memoryview(flat.numpy()), placements, cancelled=cancelled)
    arena.write_kept(flat)
