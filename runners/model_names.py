"""Which models may be loaded, and from where: demo models, folders of the configuration, allowed Hub ids."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from falctl.toolkit import RequestError
from runners.demo import DEMO_MODELS, demo_model_path

_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_FOLDER: Final = re.compile(_WORD)
"""One folder name that begins with a letter or digit: no separator, no "..", nothing hidden."""
_HUB_ID: Final = re.compile(f"{_WORD}/{_WORD}")


class UnknownModelError(RequestError):
    """The configuration does not allow this model."""

    status, error_type = 404, "model_not_allowed"


@dataclass(frozen=True, slots=True)
class Source:
    """Where diffusers loads a model from."""

    place: str
    """A folder's path, or a Hub id."""
    local: bool
    loras: tuple[str, ...] = ()
    """Paths of the LoRAs that its name has behind a ``+`` each."""


def find_model(name: str, *, paths: Sequence[Path], allow: Sequence[str]) -> Source:
    """
    Return where the model *name* is loaded from; what follows a ``+`` is a LoRA that it is to be drawn with.

    Raises:
        UnknownModelError: nowhere; tells the line of the configuration that would allow it.
    """
    found = _find_base(name, paths=paths, allow=allow)
    base, _, loras = name.partition("+")
    # A folder's name may have a + of its own.
    while found is None and loras:
        found = _find_base(base, paths=paths, allow=allow)
        if found is not None:
            return replace(found, loras=tuple(_find_lora(lora, paths=paths) for lora in loras.split("+")))
        more, _, loras = loras.partition("+")
        base = f"{base}+{more}"
    if found is None:
        base = name.partition("+")[0]
        if name.endswith("+") and _find_base(base, paths=paths, allow=allow) is not None:
            msg = f"Model {name!r} names no LoRA behind its last +; {base!r} alone is known"
            raise UnknownModelError(msg)
        raise UnknownModelError(_refusal(base or name, paths=paths, allow=allow))
    return found


def _find_base(name: str, *, paths: Sequence[Path], allow: Sequence[str]) -> Source | None:
    if name in DEMO_MODELS:
        return Source(str(demo_model_path(name)), local=True)
    if _FOLDER.fullmatch(name):
        for parent in paths:
            if (parent / name).is_dir():
                return Source(str(parent / name), local=True)
    if name in allow and _HUB_ID.fullmatch(name):
        return Source(name, local=False)
    return None


def _find_lora(name: str, *, paths: Sequence[Path]) -> str:
    if _FOLDER.fullmatch(name):
        for parent in paths:
            for file in (parent / name, parent / f"{name}.safetensors"):
                if file.suffix == ".safetensors" and file.is_file():
                    return str(file)
    line = f"paths = {json.dumps([*map(str, paths), '/folder/that/holds/it'])}"
    msg = (
        f"LoRA {name!r} is not known: it is the name of a safetensors file in a folder of [models] in the configuration: "
        f"{line}"
    )
    raise UnknownModelError(msg)


def _refusal(name: str, *, paths: Sequence[Path], allow: Sequence[str]) -> str:
    known = f"The demo models are {', '.join(DEMO_MODELS)}."
    if _HUB_ID.fullmatch(name):
        line = f"allow = {json.dumps([*allow, name])}"
        return f"Model {name!r} is not allowed. To fetch it from the Hub, put this line under [models] in the configuration: {line}"
    if _FOLDER.fullmatch(name):
        line = f"paths = {json.dumps([*map(str, paths), '/folder/that/holds/it'])}"
        return (
            f"Model {name!r} is not known. If it is a folder, name the folder that holds it by this line under "
            f"[models] in the configuration: {line}. {known}"
        )
    return (
        f"Model {name!r} is neither the name of a folder nor a Hub id (owner/name). Put the folder that holds it "
        f'under [models] in the configuration, paths = ["/folder/that/holds/it"], and ask for it by its name. {known}'
    )
