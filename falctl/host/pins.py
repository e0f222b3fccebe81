"""Prove that torch sees exactly the cards this runner is pinned to, in order: never a silent CPU runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from falctl.errors import StartError


@dataclass(frozen=True, slots=True)
class Seen:
    """What torch says of this process."""

    torch_version: str
    cuda_build: str | None
    """The CUDA release torch was built for; None for a CPU build."""
    uuids: tuple[str, ...]
    trouble: str = ""
    """What CUDA raised when it was asked."""


def prove_cards(cards: Sequence[str], *, driver: str) -> None:
    """
    Import torch and compare its devices with *cards*; makes a CUDA context.

    Raises:
        StartError: one line with driver, CUDA build and what to do.
    """
    if (problem := mismatch(cards, look(), driver=driver)) is not None:
        raise StartError(problem)


def look() -> Seen:
    """Return what torch sees. Imports torch."""
    import torch

    uuids: list[str] = []
    trouble = ""
    try:
        uuids.extend(str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count()))
    except (RuntimeError, AssertionError) as error:
        trouble = " ".join(str(error).split())
    return Seen(torch.__version__, torch.version.cuda, tuple(uuids), trouble)


def mismatch(cards: Sequence[str], seen: Seen, *, driver: str) -> str | None:
    """Return None when *seen* are exactly *cards*, in order, else one line for a person."""
    if _are(cards, seen):
        return None
    facts = (
        f"driver {driver or 'unknown'}, torch {seen.torch_version} built for CUDA {seen.cuda_build or 'none'}"
    )
    if seen.cuda_build is None:
        return (
            f"this torch cannot use GPUs ({facts}): install a CUDA build of torch, see https://pytorch.org/get-started, "
            "or start with --gpus none"
        )
    facts += f": {seen.trouble}" if seen.trouble else ""
    if not seen.uuids:
        return (
            f"torch sees no GPU, wanted {', '.join(cards)} ({facts}): update the driver, or install a torch "
            "built for the CUDA release that `nvidia-smi` names"
        )
    return (
        f"torch sees {', '.join(seen.uuids)}, wanted {', '.join(cards)} ({facts}): "
        "check with `nvidia-smi -L` that each is there and works"
    )


def _are(cards: Sequence[str], seen: Seen) -> bool:
    if len(cards) == len(seen.uuids) == 1 and cards[0].startswith("MIG-"):
        # CUDA shows the MIG instance that it is asked for or nothing, but before CUDA 13 it may name it by its
        # parent's UUID (cuDeviceGetUuid against cuDeviceGetUuid_v2).
        return True
    return [_bare(card) for card in cards] == [_bare(uuid) for uuid in seen.uuids]


def _bare(uuid: str) -> str:
    """Return *uuid* as torch gives it: without NVML's prefix, in lower case."""
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()
