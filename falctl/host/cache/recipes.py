"""
What `from_pretrained` is to be asked for a model, worked out from its folder before any library reads it.

A recipe is made anew when anything in the folder has changed, which a stat of each of its files tells. Its variant is
the one that is stored in the wanted dtype, else the plain files, else whatever is there, quantised weights last.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from falctl.errors import ModelFilesError
from falctl.host.cache.content_key import FileDigests, component_key, is_settled
from falctl.host.cache.estimate import Wanted
from falctl.host.cache.folder import Component, PipelineFolder, read_folder, variants
from falctl.host.cache.headers import Stamp
from falctl.host.cache.loras import LORA, lora_key
from falctl.host.cache.quantised import Quantised, is_quantised, quantised_in, require_unscaled

T = TypeVar("T")

_REMEMBERED_MAX: Final = 256
VARIANTS: Final[Mapping[Wanted, str]] = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""How the Hub calls the variants of each dtype."""
_LIBRARIES: Final = ("torch", "diffusers", "transformers")

_Stamps = tuple[tuple[str, Stamp], ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model's folder as it was at one moment, and how to load it."""

    folder: PipelineFolder
    variant: str | None
    dtype: Wanted
    stamps: _Stamps
    """Of every file in it."""
    loras: Component | None = None
    """What is added to it."""
    weights: str | None = None
    """Which of the folder's quantised weights these are; None: its plain ones."""

    @property
    def weighty(self) -> tuple[Component, ...]:
        """Return the folder's components that have weights."""
        return tuple(component for component in self.folder.components if component.weights)

    @property
    def parts(self) -> tuple[Component, ...]:
        """Return all that has weights."""
        return self.weighty if self.loras is None else (*self.weighty, self.loras)

    @property
    def light_files(self) -> _Stamps:
        """Return the stamps of what no component's key covers: the index, the scheduler, the tokenizers."""
        weighty = {component.name for component in self.weighty}
        return tuple((name, stamp) for name, stamp in self.stamps if name.partition(os.sep)[0] not in weighty)


class Recipes:
    """Recipes by folder, all for one dtype. Thread-safe; blocking: stats, and reads what has changed."""

    def __init__(self, dtype: Wanted, digests: FileDigests) -> None:
        self.dtype: Wanted = dtype
        self._known: OrderedDict[Path, Recipe] = OrderedDict()
        self._quantised: OrderedDict[Path, tuple[_Stamps, Quantised]] = OrderedDict()
        self._digests = digests
        self._keyed: dict[tuple[Path, str | None], tuple[Recipe, dict[str, str]]] = {}
        self._lock = threading.Lock()

    def of(self, root: Path) -> Recipe:
        """
        Return the recipe of the folder *root* as it is now.

        Raises:
            ModelFilesError: it is not a whole diffusers folder of safetensors files.

        """
        stamps = _stamps(root)
        with self._lock:
            known = self._known.get(root)
        if known is not None and known.stamps == stamps:
            return known
        recipe = _written(root, self.dtype, stamps)
        with self._lock:
            _remember(self._known, root, recipe)
        return recipe

    def quantised(self, recipe: Recipe) -> Quantised:
        """Return the quantised weights beside the plain ones of *recipe*; reads headers, of what has changed."""
        root = recipe.folder.root
        with self._lock:
            stamps, known = self._quantised.get(root, (None, Quantised()))
        if stamps == recipe.stamps:
            return known
        found = quantised_in(recipe.folder)
        with self._lock:
            _remember(self._quantised, root, (recipe.stamps, found))
        return found

    def with_weights(self, recipe: Recipe, weights: str | None) -> Recipe:
        """Return the plain *recipe* with its quantised *weights*, or as it is where it has none of that name."""
        parts = self.quantised(recipe).sets.get(weights) if weights is not None else None
        if parts is None:
            return recipe
        return replace(recipe, folder=replace(recipe.folder, components=parts), weights=weights)

    def keys(self, recipe: Recipe, name: str) -> dict[str, str]:
        """
        Return the key of each part by its name, for the model *name*; reads the weight files that it has not read yet.

        Raises:
            ModelFilesError: a file has changed since the recipe was made.

        """
        keys = self._folder_keys(recipe)
        if recipe.loras is None:
            return keys
        return {**keys, LORA: lora_key(recipe.loras, {**keys, "": name}, digests=self._digests)}

    def _folder_keys(self, recipe: Recipe) -> dict[str, str]:
        which = recipe.folder.root, recipe.weights
        with self._lock:
            known = self._keyed.get(which)
        if known is not None and known[0].stamps == recipe.stamps:
            return known[1]
        digests = self._digests.of_all(file for component in recipe.weighty for file in component.weights)
        keys = {
            component.name: component_key(
                component, dtype=recipe.dtype, versions=_versions(), digests=digests
            )
            for component in recipe.weighty
        }
        if all(is_settled(stamp) for _name, stamp in recipe.stamps):
            with self._lock:
                self._keyed[which] = recipe, keys
        return keys


def _remember(known: OrderedDict[Path, T], root: Path, value: T) -> None:
    known[root] = value
    known.move_to_end(root)
    if len(known) > _REMEMBERED_MAX:
        known.popitem(last=False)


def _written(root: Path, dtype: Wanted, stamps: _Stamps) -> Recipe:
    there = variants(root)
    variant: str | None = VARIANTS[dtype]
    if variant in there:
        folder = read_folder(root, variant=variant)
    else:
        variant, folder = _read_any(root, there)
    require_unscaled(folder)
    return Recipe(folder, variant, dtype, stamps)


def _read_any(root: Path, there: Iterable[str]) -> tuple[str | None, PipelineFolder]:
    try:
        return None, read_folder(root)
    except ModelFilesError:
        found = tuple(_readable(root, there))
        if not found:
            raise
    # Quantised weights have lost something that the others have not.
    return min(found, key=lambda one: is_quantised(one[1]))


def _readable(root: Path, there: Iterable[str]) -> Iterator[tuple[str, PipelineFolder]]:
    for variant in there:
        with contextlib.suppress(ModelFilesError):
            yield variant, read_folder(root, variant=variant)


def _stamps(root: Path) -> _Stamps:
    """Return the stamps of the files of *root* and of its folders; those of a component lie no deeper."""
    found: list[tuple[str, Stamp]] = []
    try:
        folders = [root, *(Path(entry.path) for entry in os.scandir(root) if entry.is_dir())]
        for folder in folders:
            found += [
                (os.path.relpath(entry.path, root), Stamp.of(entry.stat()))
                for entry in os.scandir(folder)
                if entry.is_file()
            ]
    except OSError as error:
        msg = f"{error.filename} cannot be read: {error.strerror}"
        raise ModelFilesError(msg) from error
    return tuple(sorted(found))


@cache
def _versions() -> dict[str, str]:
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}
