"""
How a pipeline can run in the memory that a device has for it, or that it cannot, and why.

What changes nothing about a picture is tried before what does, and what is fast before what is slow:

    whole                every component on the device, all the time
    staged               components come and go in the order of the pipeline: text encoders run, then leave
    whole, staged        again with the decoder working tile by tile (its seams are faint, but they are there)
    quantised            all of these again with smaller weights, if the folder has them
    offloaded            components that do not fit alone go through the device block by block, without tiles and with
    too large            nothing fits; the text says what was tried, with its numbers

Quantised weights with which a model is loaded already are tried before its plain ones: a model does not change its
weights, which costs a load, because the room for it grew again, but only because they no longer fit. A *stage* is what must be on the device together: each encoder alone, all denoisers, all decoders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, TypeVar

from falctl.core.sizes import size_text

K = TypeVar("K")

How: TypeAlias = Literal["whole", "staged", "offloaded"]
"""How a model is on its device: all of it; each component while it works; some block after block."""

Role: TypeAlias = Literal["encoder", "denoiser", "decoder", "other", "resident"]
"""
What a component does for a picture; ``other`` are checkers and the like, which run alone, ``resident`` what others need
while they run, such as the weights of LoRAs.
"""

_ROLES: Final[Mapping[str, Role]] = {
    "text_encoder": "encoder",
    "image_encoder": "encoder",
    "unet": "denoiser",
    "transformer": "denoiser",
    "prior": "denoiser",
    "controlnet": "denoiser",
    "vae": "decoder",
    "vqvae": "decoder",
    "vqgan": "decoder",
    "movq": "decoder",
    "lora": "resident",
}
"""By how a component's name in ``model_index.json`` begins."""

RING_SLOTS: Final = 2
"""Places for blocks that come and go: one runs while the next arrives."""


@dataclass(frozen=True, slots=True)
class PartSize:
    """One component, as far as room goes."""

    name: str
    nbytes: int
    role: Role
    blocks: tuple[int, ...] = ()
    """Bytes of the blocks that can come and go one after the other, in the order in which they run."""
    beside: int = 0
    """What each call of it takes beside its weights: the largest quantised one, in the dtype that is computed in."""


_Set: TypeAlias = tuple[str | None, Sequence[PartSize]]
"""The name of weights, None: the plain ones; and the parts with them."""


@dataclass(frozen=True, slots=True)
class DrawingPeaks:
    """What a drawing takes beside the weights, in bytes, by what runs."""

    encode: int = 0
    denoise: int = 0
    decode: int = 0
    decode_tiled: int = 0


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """A component whose blocks go through the device."""

    name: str
    resident: int
    """How many blocks, from the first, stay for as long as the component does."""
    slots: int
    """Places for the others, each as large as the largest of them."""
    nbytes: int
    """All that it has on the device: resident blocks, slots, and what is in no block."""
    moved_bytes: int
    """What each pass through the component, so each step of a denoiser, copies to the device."""

    def slowdown(self, copy_rate: float | None) -> str:
        """Return what that costs, in words; *copy_rate*: bytes a second, None where it was not measured."""
        moved = f"each pass through {self.name} copies {size_text(self.moved_bytes)} to the device"
        if not copy_rate:
            return moved
        return f"{moved}, {self.moved_bytes / copy_rate:.2f} s at {size_text(copy_rate)}/s"


@dataclass(frozen=True, slots=True)
class Plan:
    """A way that fits."""

    how: How
    nbytes: int
    """The most that is on the device at a time, with what the drawing takes."""
    tiled: bool = False
    """Whether the decoder works tile by tile."""
    weights: str | None = None
    """The quantised weights of the folder; None: those that were asked for."""
    offloaded: tuple[BlockPlan, ...] = ()
    tried: tuple[str, ...] = ()
    """What was considered before and does not fit, with its numbers."""

    @property
    def name(self) -> str:
        """Return it in words, such as ``staged, decoded in tiles``."""
        weights = f"{self.weights} weights, " if self.weights is not None else ""
        return weights + self.how + (", decoded in tiles" if self.tiled else "")


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Nothing fits."""

    least_bytes: int
    """What the last of the ways takes: blocks that move, tiles if they help."""
    tried: tuple[str, ...]
    """All that was considered, with what each takes, for the client to read."""


def fit(
    parts: Sequence[PartSize],
    peaks: DrawingPeaks,
    *,
    available_bytes: int,
    quantised: Mapping[str, Sequence[PartSize]] | None = None,
    loaded: str | None = None,
) -> Plan | TooLarge:
    """
    Return the first way, in the order above, in which *parts* and a drawing of *peaks* take at most *available_bytes*.

    *quantised* are the parts with each of the smaller weights that the folder has, by their name, best first; *loaded*
    is which of these the model is loaded with, None: with none of them.
    """
    sets: list[_Set] = [(None, parts), *(quantised or {}).items()]
    sets.sort(key=lambda one: loaded is None or one[0] != loaded)
    tried: list[str] = []
    for weights, some in sets:
        for how, tiled in (("whole", False), ("staged", False), ("whole", True), ("staged", True)):
            if tiled and not _tiles_help(some, peaks):
                continue
            stages = _stages(some, peaks, tiled=tiled)
            plan = _whole(stages) if how == "whole" else _staged(stages)
            plan = replace(plan, tiled=tiled, weights=weights, tried=tuple(tried))
            if plan.nbytes <= available_bytes:
                return plan
            tried.append(f"{plan.name} takes {size_text(plan.nbytes)}")
    if not quantised:
        tried.append("no quantised weights are there that could be used")
    return _offloaded(sets, peaks, available_bytes, tried)


def role_of(name: str) -> Role:
    """Return what the component called *name* in ``model_index.json`` does."""
    return next((role for start, role in _ROLES.items() if name.startswith(start)), "other")


def leavers(present: Mapping[K, int], *, need_bytes: int, free_bytes: int) -> tuple[K, ...]:
    """
    Return which of *present* (bytes by key, least recently used first) leave so that *need_bytes* are free.

    The last used go first: a pipeline's components run in a circle, so theirs is the longest way to the next use. All
    of them, if that is not enough.
    """
    leaving: list[K] = []
    for key in reversed(tuple(present)):
        if free_bytes >= need_bytes:
            break
        leaving.append(key)
        free_bytes += present[key]
    return tuple(leaving)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Parts that are on the device together, and what runs takes beside them."""

    parts: tuple[PartSize, ...]
    peak_bytes: int

    @property
    def beside_bytes(self) -> int:
        return self.peak_bytes + max((part.beside for part in self.parts), default=0)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts) + self.beside_bytes


def _stages(parts: Sequence[PartSize], peaks: DrawingPeaks, *, tiled: bool) -> tuple[_Stage, ...]:
    beside = sum(p.nbytes for p in parts if p.role == "resident")
    alone = [_Stage((p,), beside + peaks.encode) for p in parts if p.role in ("encoder", "other")]
    denoisers = tuple(p for p in parts if p.role == "denoiser")
    decoders = tuple(p for p in parts if p.role == "decoder")
    together = [
        _Stage(denoisers, beside + peaks.denoise),
        _Stage(decoders, beside + (peaks.decode_tiled if tiled else peaks.decode)),
    ]
    return (*alone, *(stage for stage in together if stage.parts))


def _tiles_help(parts: Sequence[PartSize], peaks: DrawingPeaks) -> bool:
    return peaks.decode_tiled < peaks.decode and any(p.role == "decoder" for p in parts)


def _whole(stages: Sequence[_Stage]) -> Plan:
    weights = sum(part.nbytes for stage in stages for part in stage.parts)
    return Plan("whole", weights + max((s.beside_bytes for s in stages), default=0))


def _staged(stages: Sequence[_Stage]) -> Plan:
    return Plan("staged", max((stage.nbytes for stage in stages), default=0))


def _offloaded(
    sets: Sequence[_Set],
    peaks: DrawingPeaks,
    available_bytes: int,
    tried: list[str],
) -> Plan | TooLarge:
    # The smallest weights move fastest, and everything else has been tried with each of them.
    weights, parts = min(sets, key=lambda one: sum(part.nbytes for part in one[1]))
    least: list[int] = []
    for tiled in (False, True) if _tiles_help(parts, peaks) else (False,):
        stages = _stages(parts, peaks, tiled=tiled)
        squeezed = tuple(_squeezed(stage, available_bytes) for stage in stages)
        blocks = tuple(plan for _nbytes, plan in squeezed if plan is not None)
        most = max((nbytes for nbytes, _plan in squeezed), default=0)
        plan = Plan("offloaded", most, tiled, weights, blocks, tuple(tried))
        if most <= available_bytes:
            return plan
        least.append(most)
        tried.append(f"{plan.name} takes {size_text(most)}")
    return TooLarge(min(least), tuple(tried))


def _squeezed(stage: _Stage, available_bytes: int) -> tuple[int, BlockPlan | None]:
    """Return what *stage* takes with as many blocks of its largest part away as must be, and that part's plan."""
    largest = max(stage.parts, key=lambda part: part.nbytes)
    if stage.nbytes <= available_bytes or not largest.blocks:
        return stage.nbytes, None
    beside = stage.nbytes - largest.nbytes
    plan = next(
        (plan for plan in _block_plans(largest) if beside + plan.nbytes <= available_bytes),
        None,
    ) or _block_plan(largest, resident=0, slots=1)
    return beside + plan.nbytes, plan


def _block_plans(part: PartSize) -> Iterator[BlockPlan]:
    """Yield the plans for *part*, from the fastest to the smallest."""
    for resident in range(len(part.blocks) - RING_SLOTS, -1, -1):
        yield _block_plan(part, resident=resident, slots=RING_SLOTS)
    yield _block_plan(part, resident=0, slots=1)


def _block_plan(part: PartSize, *, resident: int, slots: int) -> BlockPlan:
    moving = part.blocks[resident:]
    outside = part.nbytes - sum(part.blocks)
    nbytes = outside + sum(part.blocks[:resident]) + slots * max(moving)
    return BlockPlan(part.name, resident, slots, nbytes, sum(moving))
