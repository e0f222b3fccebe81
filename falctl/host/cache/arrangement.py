"""
How each pipeline of a store runs on its device: whole, staged, offloaded, decoded in tiles or not.

What an arrangement hangs on a pipeline (hooks, blocks in a ring) stays from `begin` until the next `begin` or `end`, also
while nobody uses it and a cache evicts its parts: the hooks bring back what they find away.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch

from falctl.core.fit import DrawingPeaks, How, Plan, Role, role_of
from falctl.host.cache.arena import Tier
from falctl.host.cache.device import Device
from falctl.host.cache.held_component import HeldComponent
from falctl.host.cache.staging import StagedPart, Staging
from falctl.host.cache.tiling import decode_in_tiles

_TIERS: Final[Mapping[str, Tier]] = {"vram": "device", "ram": "host", "disk": "skeleton"}


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A way to run, and what the drawing is expected to take in it."""

    plan: Plan
    peaks: DrawingPeaks

    def peak_bytes(self, role: Role) -> int:
        """Return what has to be free beside the weights of a component of *role* while it works."""
        decode = self.peaks.decode_tiled if self.plan.tiled else self.peaks.decode
        return {"denoiser": self.peaks.denoise, "decoder": decode}.get(role, self.peaks.encode)


_UNTOLD: Final = Arrangement(Plan("whole", 0), DrawingPeaks())


class Arrangements:
    """Those of the pipelines on *device*, by name. One thread at a time."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._staging = Staging(device)
        self._wanted: dict[str, Arrangement] = {}
        self._hung: dict[str, ExitStack] = {}
        self._modules: weakref.WeakKeyDictionary[HeldComponent, weakref.WeakSet[torch.nn.Module]] = (
            weakref.WeakKeyDictionary()
        )
        """Those that have the weights of a component: a pipeline's with LoRAs are clones."""

    def weights(self, name: str) -> str | None:
        """Return which quantised weights *name* is to run with; None: its plain ones, or nobody has said."""
        return self._wanted.get(name, _UNTOLD).plan.weights

    def note(self, name: str, arrangement: Arrangement, pipeline: Any | None) -> None:
        """Take *arrangement* for *name*; its tiles count at once, on *pipeline* if it is constructed."""
        self._wanted[name] = arrangement
        if pipeline is not None:
            decode_in_tiles(pipeline, on=arrangement.plan.tiled)

    def begin(self, name: str, how: How, pipeline: Any, parts: Mapping[str, HeldComponent]) -> None:
        """
        Have *name*, which is *pipeline* made of *parts*, run as was noted, *how* it is placed; moves nothing to the device.

        A whole one is hung with hooks, too: another pipeline that is staged may have sent a part away that both have.
        """
        self.unhang(name)
        wanted = self._wanted.get(name, _UNTOLD)
        decode_in_tiles(pipeline, on=wanted.plan.tiled)
        blocks = {plan.name: plan for plan in wanted.plan.offloaded} if how == "offloaded" else {}
        staged: list[StagedPart] = []
        for part, component in parts.items():
            modules = self._modules.setdefault(component, weakref.WeakSet())
            module = getattr(pipeline, part, None)
            if module is not None:  # the weights of LoRAs are in modules of others
                modules.add(module)
                peak = (
                    _nothing if how == "whole" else self._peak_of(name, role_of(part), component.beside_bytes)
                )
                staged.append(StagedPart(part, module, Weights(component), id(component), peak))
            component.offload(blocks.get(part), tuple(modules))
        hung = ExitStack()
        hung.enter_context(self._staging.staged(staged))
        self._hung[name] = hung

    def end(self, name: str) -> None:
        """Let go of *name*."""
        self.unhang(name)
        self._wanted.pop(name, None)

    def unhang(self, name: str) -> None:
        """Let go of the pipeline of *name*, which is to run as it was until the next `begin`."""
        if (hung := self._hung.pop(name, None)) is not None:
            hung.close()

    def _peak_of(self, model: str, role: Role, beside_bytes: int) -> Callable[[], int]:
        # Asked as it runs, for the next drawing may be a larger one.
        return lambda: self._wanted.get(model, _UNTOLD).peak_bytes(role) + beside_bytes


def _nothing() -> int:
    return 0


class Weights:
    """A held component as staging moves it."""

    def __init__(self, component: HeldComponent) -> None:
        self._component = component

    @property
    def nbytes(self) -> int:
        return self._component.device_bytes

    @property
    def tier(self) -> Tier:
        return _TIERS[self._component.part.tier]

    def to_device(self, device: Device) -> None:
        self._component.to_device(device)

    def evict(self) -> None:
        self._component.evict()
