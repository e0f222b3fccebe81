"""
What a request for images asks for, as the app's fields: the reading of OpenAI's parameters.

What an app can do is passed on, what makes no difference here is taken and dropped, and what would make one that we
do not make is refused. Parameters that OpenAI does not have (``seed``, steps: ``extra_body``) are the app's own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from falctl.errors import ParameterError

IMAGES_MAX: Final = 10
"""OpenAI's own bound."""
_NO_DIFFERENCE: Final = frozenset(
    {"quality", "style", "user", "background", "moderation", "output_compression", "safety_identifier"}
)
_NOT_MADE: Final = ("stream", "partial_images", "svg", "frame_count", "frame_duration_ms")
_FORMATS: Final = ("png", "jpeg", "webp")
_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_SEED_MAX: Final = 2**64
_READ: Final = frozenset({"n", "size", "response_format", "seed", *_NOT_MADE})

Form: TypeAlias = Literal["url", "b64_json"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """One request for images."""

    model: str
    form: Form
    inputs: tuple[dict[str, Any], ...]
    """What the app is asked for each image, one at least."""


def read_wishes(body: bytes) -> Wishes:
    """
    Return what *body* asks for.

    Raises:
        ParameterError: it cannot be done; names the parameter and the fix.
    """
    asked = _object(body)
    model, _ = _text(asked, "model"), _text(asked, "prompt")
    for name in _NOT_MADE:
        if asked.get(name):
            msg = f"{name} is not supported: whole images are answered, one for each of n"
            raise ParameterError(msg, param=name)
    form: Form = "b64_json" if _choice(asked, "response_format", ("url", "b64_json")) == "b64_json" else "url"
    _choice(asked, "output_format", _FORMATS)
    dropped = _NO_DIFFERENCE | _READ
    common = {name: value for name, value in asked.items() if name not in dropped and value is not None}
    inputs = tuple(common | _size(asked) | seed for seed in _seeds(asked, _count(asked)))
    return Wishes(model, form, inputs)


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        msg = "the body must be a JSON object with model and prompt"
        raise ParameterError(msg, param=None)
    return asked


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value:
        known = "; GET /v1/models lists the models" if name == "model" else ""
        msg = f"{name} must be a text{known}"
        raise ParameterError(msg, param=name)
    return value


def _choice(asked: dict[str, Any], name: str, choices: tuple[str, ...]) -> str | None:
    value: str | None = asked.get(name)
    if value is not None and value not in choices:
        msg = f"{name} must be one of {', '.join(choices)}"
        raise ParameterError(msg, param=name)
    return value


def _count(asked: dict[str, Any]) -> int:
    value: Any = asked.get("n")
    if value is None:
        return 1
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= IMAGES_MAX:
        return value
    msg = f"n must be a whole number from 1 to {IMAGES_MAX}"
    raise ParameterError(msg, param="n")


def _size(asked: dict[str, Any]) -> dict[str, int]:
    value = asked.get("size")
    if value is None or value == "auto":
        return {}
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        msg = 'size must be "auto" or WIDTHxHEIGHT in pixels, such as "512x512"'
        raise ParameterError(msg, param="size")
    return {"width": int(match[1]), "height": int(match[2])}


def _seeds(asked: dict[str, Any], count: int) -> list[dict[str, int]]:
    """Return the seed of each image: the first has the one that was given, so that one alone would be the same."""
    seed = asked.get("seed")
    if seed is None:
        return [{}] * count
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > _SEED_MAX:
        msg = "seed must be a whole number of 64 bits at most"
        raise ParameterError(msg, param="seed")
    return [{"seed": seed + i} for i in range(count)]
