"""What can be told about a key of the configuration: its kind, its bounds, its default, the nearest name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from falctl.config import AppConfig, Config, Section
from falctl.config_values import (
    KEEP_ALIVE_CHOICE,
    POLICY_CHOICE,
    Kind,
    format_duration,
    format_keep_alive,
    format_size,
)

Name = tuple[str, str]
"""A section and a key in it; an app's section is ``apps.NAME``."""

APPS: Final = "apps"
"""The table whose tables are the apps."""

ENV_PREFIX: Final = "FALCTL_"
_SHOWN_CHARACTERS_MAX: Final = 120
_DEPTH_MAX: Final = 8
"""Dotted keys nest tables without limit; nobody needs to see more than this."""

_EXPECTED: Final = {
    Kind.WHOLE: "a whole number {allowed}",
    Kind.NUMBER: "a number {allowed}",
    Kind.DURATION: 'seconds, or a duration such as "10m", {allowed}',
    Kind.KEEP: 'seconds, or a duration such as "10m": {allowed}',
    Kind.SIZE: 'bytes, or a size such as "8GiB", {allowed}',
    Kind.BUDGET: '"auto", bytes, or a size such as "8GiB", {allowed}',
    Kind.GPUS: '"all", "none", or a list of cards such as [0, 2]',
    Kind.TEXT: "a text in quotes",
    Kind.CHOICE: "{allowed}",
    Kind.POLICY: "{allowed}",
    Kind.LIST: 'a list of texts such as ["a", "b"]',
    Kind.TABLE: 'a table such as {{ "a" = "10m", "b" = -1 }}',
}

_CHOICES: Final = {Kind.POLICY: POLICY_CHOICE, Kind.KEEP: KEEP_ALIVE_CHOICE}
"""Bounds that no comparison says."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key, as its field declares it."""

    section: str
    key: str
    field: FieldInfo

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def env(self) -> str:
        """The environment variable that overrides it."""
        return f"{ENV_PREFIX}{self.section}_{self.key}".upper()

    @property
    def kind(self) -> Kind:
        for mark in self._marks:
            if isinstance(mark, Kind):
                return mark
        match get_origin(self._annotation):
            case None:
                return Kind.TEXT
            case origin if origin is Literal:
                return Kind.CHOICE
            case origin if origin is dict:
                return Kind.TABLE
            case _:
                return Kind.LIST

    @property
    def _annotation(self) -> object:
        """What its value is; None, of a key that may stay unwritten, left aside."""
        annotation = self.field.annotation
        return get_args(annotation)[0] if type(None) in get_args(annotation) else annotation

    @property
    def _marks(self) -> list[object]:
        return [*self.field.metadata, *getattr(self._annotation, "__metadata__", ())]

    @property
    def default(self) -> str:
        """Its default as TOML, with the unit that reads best."""
        default = self.field.default
        if self.kind is Kind.BUDGET and default is None:
            return to_toml("auto")
        if self.kind is Kind.KEEP and default < 0:
            return self.unit(default)
        return f'"{self.unit(default)}"' if self._measured else to_toml(default)

    @property
    def _measured(self) -> bool:
        return self.kind in (Kind.DURATION, Kind.KEEP, Kind.SIZE, Kind.BUDGET)

    def unit(self, value: float) -> str:
        """Return a number of this key as a person writes it: seconds as ``10m``, bytes as ``8GiB``."""
        match self.kind:
            case Kind.DURATION:
                return format_duration(value)
            case Kind.KEEP:
                return format_keep_alive(value)
            case Kind.SIZE | Kind.BUDGET:
                return format_size(int(value))
            case _:
                return str(value)

    def expected(self) -> str:
        """Return what to write, bounds included, such as ``a whole number from 0 to 65535``."""
        return _EXPECTED[self.kind].format(allowed=self.allowed())

    def allowed(self) -> str:
        """Return its bounds, such as ``from 0s to 1h``, or its choices; empty for a text or list, which has neither."""
        if self.kind in _CHOICES:
            return _CHOICES[self.kind]
        if self.kind is Kind.CHOICE:
            return _one_of([to_toml(choice) for choice in get_args(self.field.annotation)])
        words: list[str] = []
        for bound in self._marks:
            if isinstance(bound, Ge):
                words.insert(0, f"from {self._shown(bound.ge)}")
            elif isinstance(bound, Gt):
                words.insert(0, f"above {self._shown(bound.gt)}, up")
            elif isinstance(bound, Le):
                words.append(f"to {self._shown(bound.le)}")
        return " ".join(words)

    def _shown(self, bound: object) -> str:
        assert isinstance(bound, int | float), "bounds of this configuration are numbers"
        return self.unit(bound)


SECTIONS: Final[dict[str, type[Section]]] = {
    name: type(field.default) for name, field in Config.model_fields.items() if name != APPS
}
"""The sections by name, in the order of the file, but for those of apps."""

KEYS: Final[dict[Name, Key]] = {
    (section, key): Key(section, key, field)
    for section, kind in SECTIONS.items()
    for key, field in kind.model_fields.items()
}
"""Every key by section and name, in the order of the file."""


def app_key(section: str, key: str) -> Key:
    """Return the key of that name in *section*, which is ``apps.NAME``. Raises KeyError: there is none."""
    return Key(section, key, AppConfig.model_fields[key])


def nearest(wrong: str, known: Iterable[str]) -> str | None:
    """Return the name of *known* (lower case) that *wrong* was probably meant to be; None if none is near."""
    from difflib import get_close_matches  # only when something is wrong

    close = get_close_matches(wrong.lower(), list(known), n=1)
    return close[0] if close else None


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return advice for who wrote *wrong*: the nearest of *known*, else all of them."""
    names = list(known)
    close = nearest(wrong, names)
    return f"did you mean '{close}'?" if close else f"there are {', '.join(names)}"


def _one_of(choices: list[str]) -> str:
    """Return ``a, b or c``."""
    *others, last = choices or [""]
    return f"{', '.join(others)} or {last}" if others else last


def to_toml(value: object, *, depth: int = _DEPTH_MAX) -> str:
    """Return *value* as one printable line of TOML; what TOML cannot say becomes a quoted text."""
    if depth == 0:
        return "…"
    match value:
        case bool() | float():
            return repr(value).lower()
        case int():
            # A longer integer cannot be turned into decimal digits (sys.set_int_max_str_digits).
            return str(value) if value.bit_length() < 1024 else hex(value)
        case list() | tuple():
            return f"[{', '.join(to_toml(item, depth=depth - 1) for item in value)}]"
        case dict():
            items = (f"{_quoted(str(key))} = {to_toml(item, depth=depth - 1)}" for key, item in value.items())
            return f"{{{', '.join(items)}}}"
        case _:
            return _quoted(str(value))


def shown(value: object) -> str:
    """Return *value* for an error: TOML, cut to what fits a line."""
    return _cut(to_toml(value))


def plain(text: str) -> str:
    """Return a name or message for an error: printable, cut to what fits a line."""
    return _cut(text if text.isprintable() else ascii(text)[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[: _SHOWN_CHARACTERS_MAX - 1] + "…"


def _quoted(text: str) -> str:
    from json import dumps  # JSON's escapes are TOML's, but for surrogate pairs

    readable = dumps(text, ensure_ascii=False)
    return readable if readable.isprintable() else dumps(text)
