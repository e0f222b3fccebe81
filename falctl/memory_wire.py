"""
What a runner and the supervisor say to each other about host memory: one JSON object a datagram.

The channel is a pair of Unix sockets that keep the bounds of messages (SOCK_SEQPACKET), made for each incarnation of a
runner. A descriptor of the block's memory comes with `Given`. `falctl.core.host_memory` says what it is all for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias

DATAGRAM_BYTES_MAX: Final = 1 << 13

KEY_CHARACTERS_MAX: Final = 256
"""At most twelve bytes each as JSON, so that the longest question fits a datagram."""


# --- runner to supervisor ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Obtain:
    """I want the block of ``key``; the answer, `Given` or `Refused`, bears my ``number``."""

    number: int
    key: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """I wait for no answer to my question ``number`` any more; a block that comes all the same I let go of."""

    number: int


@dataclass(frozen=True, slots=True)
class Seal:
    """I have filled the block."""

    block: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """I will not fill the block."""

    block: int


@dataclass(frozen=True, slots=True)
class LetGo:
    """I have unmapped the block, once."""

    block: int


# --- supervisor to runner ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """Here is the memory of ``block``, as a descriptor; fill it unless it is ``filled``."""

    number: int
    block: int
    filled: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """There is no room; ``why`` in words for a person."""

    number: int
    why: str
    lacking_bytes: int
    """What would have to be let go of first; 0: that would not help."""


Message: TypeAlias = Obtain | Withdraw | Seal | Abandon | LetGo | Given | Refused

_KINDS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind for kind in (Obtain, Withdraw, Seal, Abandon, LetGo, Given, Refused)
}
_TYPES: Final = {"int": int, "str": str, "bool": bool}


def encode(message: Message) -> bytes:
    """Return *message* as one datagram."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}).encode()


def decode(datagram: bytes) -> Message:
    """Return the message of one datagram. Raises ValueError: it is none of ours, or a number is negative."""
    try:
        table = json.loads(datagram)
        kind = _KINDS[table["kind"]]
        values = {field.name: table[field.name] for field in fields(kind)}
        wrong = [f.name for f in fields(kind) if type(values[f.name]) is not _TYPES[str(f.type)]]
    except (KeyError, TypeError) as error:
        msg = f"not a message of ours: {datagram[:200]!r}"
        raise ValueError(msg) from error
    if wrong or any(type(value) is int and value < 0 for value in values.values()):
        msg = f"not a message of ours: {datagram[:200]!r}"
        raise ValueError(msg)
    message: Message = kind(**values)
    return message
