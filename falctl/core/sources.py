"""
Where a runner would load a model from, which decides what the load costs.

base   another model on the card is all of it but a small addition (``base+lora`` beside ``base``)
ram    its bytes are in host memory
disk   anything else, also a model that no one here has ever held

A hint is opaque. That one model is the base of another is known only where the runner's app has said by which text it
joins the two (`Caps.joint`), and only of a base that the runner lists; never guessed from a character in a hint. How the
two are joined is said here once, for the app and for those who look for a runner that holds the result. Such a model
waits for a busy holder of its base for as long as that saves at most, the base is not its victim, and whoever wants it
wants the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from falctl.core.hints import HINT_BYTES_MAX
from falctl.core.types import Hint, Wanted

Source: TypeAlias = Literal["base", "ram", "disk"]

SOURCES: Final[tuple[Source, ...]] = ("base", "ram", "disk")
"""Cheapest first."""

LAID_SUFFIX: Final = ".safetensors"

Tier: TypeAlias = Literal["ram", "disk"]
"""Where a host says that a load took its bytes from; it knows nothing of bases."""

SHARES: Final[Mapping[Source, float]] = {"base": 0.05, "ram": 0.1, "disk": 1.0}
"""
What a load from there costs of one from disk, before any has been seen.

vLLM's sleep level 1 and ServerlessLLM's pinned pool are 10 to 200 times as fast as a load (gpu-cache know-how, 2024-25);
a LoRA swap took 13 to 51 ms where its tiny pipeline took 67 ms.
"""


@dataclass(frozen=True, slots=True)
class Stock:
    """What a runner's cache tells of the models that it knows, beside those that it is warm for."""

    in_ram: frozenset[Hint] = frozenset()
    """Those whose bytes are all in host memory, whether or not they are on the card as well."""
    sizes: Mapping[Hint, int] = field(default_factory=dict)
    """What each takes on the card, in bytes."""


def bases(hint: Hint, joint: str) -> Iterator[Hint]:
    """Iterate over what may be the base of *hint*, longest first; nothing if *joint* is empty."""
    end = len(hint)
    while joint and (end := hint.rfind(joint, 0, end)) > 0:
        yield Hint(hint[:end])


def join(base: str, laid: Iterable[str], joint: str) -> str:
    """
    Return the name of the model *base* with what is *laid* upon it, in that order: files, with or without their ending.

    How much of each is taken is not a part of the name.
    """
    return joint.join((base, *(name.removesuffix(LAID_SUFFIX) for name in laid)))


def named(wanted: Wanted, joint: str) -> Wanted:
    """
    Return what is *wanted* of an app that joins names by *joint*; empty: what is laid upon a model is none of its name.

    A name that would be too long for a runner to list stays that of the base.
    """
    if not wanted.laid:
        return wanted
    whole = join(wanted.hint, wanted.laid, joint) if joint else wanted.hint
    return replace(wanted, hint=Hint(whole) if len(whole) <= HINT_BYTES_MAX else wanted.hint, laid=())
