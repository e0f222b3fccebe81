"""
Which cards each runner gets: the configuration's choice against what the machine has.

Numbers are NVML's indices, as nvidia-smi prints them; what comes out are UUIDs, because CUDA may count
differently (its default order is FASTEST_FIRST).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, pairwise
from typing import Final, Literal, TypeAlias

from falctl.errors import ConfigError

CardName: TypeAlias = int | str
GpuChoice: TypeAlias = Literal["all", "none"] | Sequence[CardName | Sequence[CardName]]

Group: TypeAlias = "tuple[Card, ...]"
"""The cards of one runner."""

_NO_DEVICE: Final = ("-1", "NoDevFiles", "none", "void")
"""Values of CUDA_VISIBLE_DEVICES that hide every card (CUDA and NVIDIA's container toolkit)."""


@dataclass(frozen=True, slots=True)
class Card:
    """One card, or one MIG instance, as NVML shows it."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    instances: tuple[str, ...] = ()
    """UUIDs of its MIG instances."""
    parent_uuid: str = ""
    """The card that this is a MIG instance of."""
    mig_mode: bool = False
    """It is in MIG mode, with instances or without: then it cannot be used whole."""


_FLAGGED: Final = "runners.gpus"
"""The key that has a flag."""


def visible(cards: Sequence[Card], cuda_visible_devices: str | None) -> tuple[Card, ...]:
    """
    Return the cards that the caller may use, in the order of its CUDA_VISIBLE_DEVICES (None: unset, all).

    As in CUDA, an entry that names no card hides itself and everything after it.
    """
    if cuda_visible_devices is None:
        return tuple(cards)
    found: list[Card] = []
    for entry in (part.strip() for part in cuda_visible_devices.split(",")):
        if not entry or entry in _NO_DEVICE:
            break
        matches = _matches(entry, cards)
        if len(matches) != 1 or matches[0] in found:
            break
        found.append(matches[0])
    return tuple(found)


def assign(choice: GpuChoice, cards: Sequence[Card], *, count: int, key: str = _FLAGGED) -> tuple[Group, ...]:
    """
    Return the cards of each runner, by runner id; empty: there is no card to use, run on the CPU.

    *cards* are the visible ones. *count* runners share them in turn; 0 is one per entry of *choice*, which is *key* of
    the configuration.

    Raises:
        ConfigError: a card that does not exist or is hidden, or a MIG parent.
    """
    if choice == "none":
        return ()
    entries: Sequence[CardName | Sequence[CardName]]
    entries = _all(cards) if choice == "all" else choice
    return repeat(tuple(_group(entry, cards, key) for entry in entries), count)


def repeat(groups: Sequence[Group], count: int) -> tuple[Group, ...]:
    """Return the cards of *count* runners that use *groups* in turn; 0: one runner each."""
    return tuple(islice(cycle(groups), count)) if count and groups else tuple(groups)


def share_out(groups: Sequence[Group], *, named: Collection[Card], shares: int) -> list[tuple[Group, ...]]:
    """
    Return *shares* parts of *groups*, in order and as equal as can be, the larger ones first.

    A group with a card that somebody has *named* is nobody's part.
    """
    left = [group for group in groups if not set(group) & set(named)]
    each, more = divmod(len(left), shares)
    ends = [each * n + min(n, more) for n in range(shares + 1)]
    return [tuple(left[begin:end]) for begin, end in pairwise(ends)]


def _all(cards: Sequence[Card]) -> list[str]:
    whole = {card.uuid for card in cards}
    return [card.uuid for card in cards if card.parent_uuid not in whole]


def _group(entry: CardName | Sequence[CardName], cards: Sequence[Card], key: str) -> Group:
    names = [entry] if isinstance(entry, int | str) else list(entry)
    group = tuple(_card(name, cards, key) for name in names)
    if len(set(group)) < len(group) or not group:
        msg = f"{key}: {entry!r} must name different cards for one runner"
        raise ConfigError(msg)
    return group


def _card(name: CardName, cards: Sequence[Card], key: str) -> Card:
    matches = _matches(str(name), cards)
    if len(matches) != 1:
        have = ", ".join(f"{c.index} ({c.uuid})" for c in cards) or "none"
        problem = "no GPU" if not matches else "more than one GPU"
        advice = "" if cards else f"; {_written(key, ['none'])} starts CPU runners"
        msg = f"{key}: {problem} {name!r}; visible here: {have}{advice}"
        raise ConfigError(msg)
    card = matches[0]
    if card.mig_mode:
        raise ConfigError(_explain_mig(card, key))
    return card


def _explain_mig(card: Card, key: str) -> str:
    what = f"{key}: GPU {card.index} ({card.uuid}) is in MIG mode and cannot be used whole; "
    if card.instances:
        return what + f"name its instances instead: {_written(key, card.instances)}"
    return (
        what
        + "it has no instances: make some (nvidia-smi mig -cgi ... -C), or leave the mode (nvidia-smi -mig 0)"
    )


def _written(key: str, names: Sequence[str]) -> str:
    """Return how a person says *key* where he most likely has: on the command line, or in the table of an app."""
    if key == _FLAGGED:
        return f"--gpus {','.join(names)}"
    return f"gpus = {json.dumps(names[0] if names == ['none'] else list(names))}"


def _matches(name: str, cards: Sequence[Card]) -> list[Card]:
    if name.isdecimal():
        return [card for card in cards if card.index == int(name) and not card.parent_uuid]
    exact = [card for card in cards if card.uuid == name]
    return exact or [card for card in cards if name[:4] in ("GPU-", "MIG-") and card.uuid.startswith(name)]
