"""
The kinds of value that a configuration key may hold, each parsed from text and written back as text.

A parser takes what TOML, an environment variable or a flag gave and raises ValueError saying what to write
instead; what it does not know it hands on unchanged, for pydantic to refuse.
"""

from __future__ import annotations

import re
from enum import StrEnum, auto
from pathlib import Path
from typing import Annotated, Final, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Strict

_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES: Final = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZES_TEN: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_NUMBER: Final = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)"
"""Bounded, so that no text becomes infinite or takes long to read."""

CARD_INDEX_MAX: Final = 1023
GPU_ENTRIES_MAX: Final = 64
EMPTY_KEY_HASH: Final = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

POLICY_NAMES: Final = ("auto", "affinity", "fal", "least-loaded", "random")
POLICY_CHOICE: Final = (
    ", ".join(f'"{name}"' for name in POLICY_NAMES) + ' or a class of yours, "module:Class"'
)

FOR_EVER: Final = -1.0
"""A model is kept for ever: it leaves only to make room."""

KEEP_ALIVE_MAX_S: Final = 365 * 86400.0
KEEP_ALIVE_CHOICE: Final = f"0, up to {KEEP_ALIVE_MAX_S / 86400:.0f}d, or -1, for ever"

GpuChoice = Literal["all", "none"] | tuple[int | str | tuple[int | str, ...], ...]
"""Which cards: all, none, or one entry per runner; a card is an NVML index or a UUID, an inner tuple one runner on several."""


class Kind(StrEnum):
    """What a key holds; decides how text is read and what an error asks for."""

    WHOLE = auto()
    NUMBER = auto()
    DURATION = auto()
    KEEP = auto()
    SIZE = auto()
    BUDGET = auto()
    GPUS = auto()
    TEXT = auto()
    CHOICE = auto()
    POLICY = auto()
    LIST = auto()
    TABLE = auto()


def parse_duration(value: object) -> object:
    """Return seconds for ``"10m"``, ``"1.5h"``, ``"250ms"``; numbers are seconds. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"\s*{_NUMBER}\s*(ms|s|m|h|d)\s*", value)
    if match is None:
        msg = 'not a duration; write a number and one of ms, s, m, h, d: "10m"'
        raise ValueError(msg)
    return float(match[1]) * _DURATIONS[match[2]]


def format_duration(seconds: float) -> str:
    """Return the shortest text that `parse_duration` reads as exactly *seconds* (not negative)."""
    for unit, length_s in sorted(_DURATIONS.items(), key=lambda entry: -entry[1]):
        count = round(seconds / length_s)
        if count >= 1 and count * length_s == seconds:
            return f"{count}{unit}"
    from decimal import Decimal  # only needed to write 1e-7 without an exponent

    return f"{Decimal(repr(float(seconds))):f}".removesuffix(".0") + "s"


def parse_keep_alive(value: object) -> object:
    """Return seconds as `parse_duration`, and `FOR_EVER` for anything negative: -1, ``"-1"``, ``"-1m"``. Raises ValueError."""
    if isinstance(value, str):
        if re.fullmatch(r"\s*-\s*[0-9]{1,20}\s*(ms|s|m|h|d)?\s*", value):
            return FOR_EVER
        return 0.0 if value.strip() == "0" else parse_duration(value)
    negative = isinstance(value, int | float) and not isinstance(value, bool) and value < 0
    return FOR_EVER if negative else value


def read_keep_alive(said: str | float) -> float | None:
    """Return the seconds, or `FOR_EVER`, that a request has *said*, a header as text; None: it is no such thing."""
    if isinstance(said, str):
        said = said.strip()
        said = float(said) if re.fullmatch(_NUMBER, said) else said
    try:
        value = parse_keep_alive(said)
    except ValueError:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value <= KEEP_ALIVE_MAX_S else None


def format_keep_alive(seconds: float) -> str:
    """Return the shortest text that `parse_keep_alive` reads as *seconds*."""
    return "-1" if seconds < 0 else format_duration(seconds)


def parse_size(value: object) -> object:
    """Return bytes for ``"8GiB"``, ``"64 MiB"``, ``"1.5GB"``; integers are bytes. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"\s*{_NUMBER}\s*([kmgt]?i?b)\s*", value, re.IGNORECASE)
    bytes_each = (_SIZES | _SIZES_TEN).get(match[2].lower()) if match else None
    if match is None or bytes_each is None:
        msg = 'not a size; write a number and one of B, KiB, MiB, GiB, TiB: "8GiB"'
        raise ValueError(msg)
    # A float holds whole numbers up to 2**53 only: without a fraction the arithmetic stays in integers.
    return int(float(match[1]) * bytes_each) if "." in match[1] else int(match[1]) * bytes_each


def format_size(size: int) -> str:
    """Return the shortest text that `parse_size` reads as exactly *size* bytes (not negative)."""
    names = {1: "B", 1 << 10: "KiB", 1 << 20: "MiB", 1 << 30: "GiB", 1 << 40: "TiB"}
    each = max(unit for unit in names if unit == 1 or (size and size % unit == 0))
    return f"{size // each}{names[each]}"


def parse_budget(value: object) -> object:
    """Return bytes as `parse_size`, and None, as much as the machine suggests, for ``"auto"``. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if (word := value.strip()) == "auto":
        return None
    try:
        return 0 if word == "0" else parse_size(word)
    except ValueError:
        msg = 'not a size; write "auto", 0, or a number and one of B, KiB, MiB, GiB, TiB: "8GiB"'
        raise ValueError(msg) from None


def parse_gpus(value: object) -> object:
    """
    Return a `GpuChoice` for ``"all"``, ``"none"``, ``"0,2"``, ``"[[0, 1]]"``, or a list of cards.

    Raises:
        ValueError: it has another shape. Whether the cards exist is for the supervisor to find out.
    """
    if isinstance(value, str):
        if (word := value.strip()) in ("all", "none"):
            return word
        value = _read_array(word) if word.startswith("[") else word.split(",")
    if not isinstance(value, list | tuple):
        msg = 'write "all", "none", or a list of cards such as [0, 2]'
        raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueError only
    if not 1 <= len(value) <= GPU_ENTRIES_MAX:
        msg = f'it must name 1 to {GPU_ENTRIES_MAX} cards; "none" asks for CPU runners'
        raise ValueError(msg)
    return tuple(
        _parse_group(entry) if isinstance(entry, list | tuple) else _parse_card(entry) for entry in value
    )


def _read_array(text: str) -> object:
    import tomllib  # rarely needed: keeps the import of this module cheap

    try:
        table = tomllib.loads(f"gpus = {text}")
    except (ValueError, RecursionError):
        table = {}
    if list(table) != ["gpus"]:
        msg = 'not a list; write [0, 2], [[0, 1]] or ["GPU-<uuid>"]'
        raise ValueError(msg)
    return table["gpus"]


def _parse_group(entry: list[object] | tuple[object, ...]) -> tuple[int | str, ...]:
    cards = tuple(_parse_card(card) for card in entry)
    if not 1 <= len(cards) <= GPU_ENTRIES_MAX or len(set(cards)) < len(cards):
        msg = "an inner list is one runner on several cards: name each card once, as in [[0, 1], [2, 3]]"
        raise ValueError(msg)
    return cards


def _parse_card(card: object) -> int | str:
    if isinstance(card, str):
        card = card.strip()
        if re.fullmatch(r"[0-9]{1,4}", card):
            card = int(card)
        elif re.fullmatch(r"(?:GPU|MIG)-[A-Za-z0-9/-]{1,124}", card):
            return card
    if isinstance(card, int) and not isinstance(card, bool) and 0 <= card <= CARD_INDEX_MAX:
        return card
    msg = f'a card is an index from 0 to {CARD_INDEX_MAX} or a UUID, as `nvidia-smi -L` prints them: [0, 2] or ["GPU-<uuid>"]'
    raise ValueError(msg)


def parse_folder(value: object) -> object:
    """Return a path with its ``~`` resolved. Raises ValueError for an empty one or an unknown user's home."""
    if not isinstance(value, str):
        return value
    if not value:
        msg = 'not a folder; write a path such as "~/models"'
        raise ValueError(msg)
    try:
        return Path(check_text(value)).expanduser()
    except RuntimeError:
        msg = "there is no such home directory; write the whole path"
        raise ValueError(msg) from None


def check_text(text: str) -> str:
    """Return *text* if it can travel in a line of UTF-8. Raises ValueError; a variable can hold any bytes."""
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text):
        msg = "it holds a control character or is not UTF-8; write plain text"
        raise ValueError(msg)
    return text


def check_policy_name(text: str) -> str:
    """Return *text* if it is a shipped policy or looks like ``module:Class``. Raises ValueError."""
    if text in POLICY_NAMES or re.fullmatch(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*", text):
        return text
    from difflib import get_close_matches  # only when something is wrong

    close = get_close_matches(text.lower(), POLICY_NAMES, n=1)
    msg = f'did you mean "{close[0]}"?' if close else f"no policy; write {POLICY_CHOICE}"
    raise ValueError(msg)


def check_key_hash(text: str) -> str:
    """Return *text* if it is ``sha256:<64 hex>``. Raises ValueError with the hash to paste if it is a plain key."""
    if re.fullmatch(r"sha256:[0-9a-fA-F]{64}", text):
        if text.lower() == EMPTY_KEY_HASH:
            msg = "the hash of an empty key, which anybody can present; make a key with `falctl key`"
            raise ValueError(msg)
        return text.lower()
    if text.startswith("sha256:") or not re.fullmatch(r"[!-~]{1,512}", text):
        msg = "not the hash of a key; write sha256: and 64 hex digits, as `falctl key` prints them"
        raise ValueError(msg)
    from falctl.apikeys import hash_key  # hashlib and secrets, for this refusal alone

    msg = f'a plain key; store its hash instead: "{hash_key(text)}"'
    raise ValueError(msg)


def check_origin(text: str) -> str:
    """Return *text* if a browser could send it as Origin. Raises ValueError: one with a path would never match."""
    if text not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", text):
        msg = 'not an origin; write scheme://host:port without a path, as in "http://localhost:3000", or "*"'
        raise ValueError(msg)
    return text


Whole = Annotated[int, Kind.WHOLE, Strict()]
Number = Annotated[float, Kind.NUMBER, Strict()]
Seconds = Annotated[float, Kind.DURATION, Strict(), BeforeValidator(parse_duration)]
Bytes = Annotated[int, Kind.SIZE, Strict(), BeforeValidator(parse_size)]
KeepAlive = Annotated[float, Kind.KEEP, Strict(), BeforeValidator(parse_keep_alive), Le(KEEP_ALIVE_MAX_S)]
"""Seconds, or `FOR_EVER`."""
Budget = Annotated[
    Annotated[int, Strict(), Ge(0), Le(1 << 50)] | None, Kind.BUDGET, BeforeValidator(parse_budget)
]
"""Bytes; None: as much as the machine suggests."""
Gpus = Annotated[GpuChoice, Kind.GPUS, BeforeValidator(parse_gpus)]
Text = Annotated[str, AfterValidator(check_text)]
Folder = Annotated[Path, BeforeValidator(parse_folder)]
KeyHash = Annotated[str, AfterValidator(check_key_hash)]
PolicyName = Annotated[str, Kind.POLICY, AfterValidator(check_policy_name)]
Origin = Annotated[str, AfterValidator(check_origin)]
