"""
Which tensors of a component make up its repeated blocks, told from their names alone: they can come and go in turn.

A number in a dotted name is an entry of a list of modules, such as ``transformer_blocks.7.attn.to_q.weight``: the first
one tells the block. A block that is a large share of its component, as a UNet's are, is divided again at the next
number, where lists inside it hold most of it. What is in no list, or in a short one (two layers of an embedding), stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_LIST_SHARE: Final = 1 / 20
"""Of a component's bytes: a list with less is not worth moving."""
_LARGE_SHARE: Final = 1 / 8
"""Of a component's bytes: a block with more is divided, if it can be."""
_COVERED: Final = 3 / 4
"""Of a large block's bytes: what lists inside it must hold, for the rest of it would stay for good."""


@dataclass(frozen=True, slots=True)
class NamedBytes:
    """A tensor under all its names: several if it is tied."""

    names: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """A module that can come and go."""

    path: str
    """Its place in the component, such as ``transformer_blocks.7``."""
    members: tuple[int, ...]
    """Its tensors, as places in what `blocks_of` was given."""
    nbytes: int


def blocks_of(tensors: Sequence[NamedBytes]) -> tuple[Block, ...]:
    """Return the blocks in the order of *tensors*; a tensor that is tied across blocks is in none."""
    total = sum(tensor.nbytes for tensor in tensors)
    return tuple(_split(tensors, range(len(tensors)), prefix="", total=total))


def _split(
    tensors: Sequence[NamedBytes], members: Iterable[int], *, prefix: str, total: int
) -> Iterator[Block]:
    found: dict[str, list[int]] = {}
    for i in members:
        path = _entry(tensors[i].names, prefix)
        if path:
            found.setdefault(path, []).append(i)
    blocks = [Block(path, tuple(at), sum(tensors[i].nbytes for i in at)) for path, at in found.items()]
    of_list: dict[str, int] = {}
    for block in blocks:
        name = block.path.rpartition(".")[0]
        of_list[name] = of_list.get(name, 0) + block.nbytes
    for block in blocks:
        if of_list[block.path.rpartition(".")[0]] >= _LIST_SHARE * total:
            yield from _divided(tensors, block, total)


def _divided(tensors: Sequence[NamedBytes], block: Block, total: int) -> Iterator[Block]:
    if block.nbytes > _LARGE_SHARE * total:
        inner = tuple(_split(tensors, block.members, prefix=f"{block.path}.", total=total))
        if sum(one.nbytes for one in inner) >= _COVERED * block.nbytes:
            yield from inner
            return
    yield block


def _entry(names: Iterable[str], prefix: str) -> str:
    """Return the entry of a list below *prefix* that all *names* are in; empty: there is no such."""
    paths = {_first_entry(name, prefix) for name in names}
    return paths.pop() if len(paths) == 1 else ""


def _first_entry(name: str, prefix: str) -> str:
    steps = name[len(prefix) :].split(".")
    at = next((i for i, step in enumerate(steps[:-1]) if step.isdigit()), None)
    return "" if at is None else prefix + ".".join(steps[: at + 1])
