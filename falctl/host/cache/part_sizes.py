"""What the parts of a model take on a device: those that are held by their layout, the others by the headers of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from falctl.core.fit import PartSize, role_of
from falctl.host.cache.estimate import beside_bytes, block_bytes, weight_bytes
from falctl.host.cache.folder import Component
from falctl.host.cache.held_component import HeldComponent
from falctl.host.cache.recipes import Recipe


def part_sizes(
    recipe: Recipe,
    keys: Mapping[str, str],
    held: Mapping[str, HeldComponent],
    *,
    estimate: Callable[[str, Component], int],
) -> tuple[PartSize, ...]:
    """
    Return the sizes of the parts of *recipe*; one that is there twice, once.

    *keys* are those of its parts, as far as they are known, *held* what is held, by key; *estimate* tells the bytes of
    the weights of what is not, by its key and from its headers.
    """
    found: dict[str, PartSize] = {}
    for part in recipe.weighty:  # what a LoRA weighs is counted with what it runs in, below
        key, role = keys.get(part.name, ""), role_of(part.name)
        there = held.get(key)
        nbytes = there.whole_bytes if there else estimate(key, part)
        blocks = there.blocks if there else block_bytes(part, recipe.dtype)
        beside = there.beside_bytes if there else beside_bytes(part, recipe.dtype)
        if recipe.loras is not None:
            blocks = ()  # blocks come and go with the modules of the plain pipeline
            nbytes += weight_bytes(recipe.loras, recipe.dtype) if role == "denoiser" else 0
        found.setdefault(key or part.name, PartSize(part.name, nbytes, role, blocks, beside))
    return tuple(found.values())
