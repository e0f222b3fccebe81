"""
Diffusers pipelines as a `ModelStore`: models that share the components that are equal.

A model is a pipeline object and the keys of its weighty components; what is light (scheduler, tokenizers) is its own. A
component is there as long as a model uses it. What a name stands for is looked up whenever it is asked for, so that a
folder whose files were replaced is another model under the same name: the old one is let go when the new one is made.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from falctl.core.activations import Drawing, activation_peak_bytes
from falctl.core.fit import How, PartSize, role_of
from falctl.core.peaks import Draws
from falctl.core.residency import Part
from falctl.errors import ModelFilesError
from falctl.host.cache.arrangement import Arrangement, Arrangements
from falctl.host.cache.components import hold
from falctl.host.cache.content_key import FileDigests
from falctl.host.cache.device import Device
from falctl.host.cache.estimate import Wanted, full_drawing, weight_bytes
from falctl.host.cache.folder import Component
from falctl.host.cache.held_component import HeldComponent
from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.loading import (
    CONSTRUCTING,
    fetch,
    load_component,
    load_pipeline,
    local_folder,
    require_same,
    told_of,
)
from falctl.host.cache.loras import add_loras, read_loras
from falctl.host.cache.part_sizes import part_sizes
from falctl.host.cache.recipes import Recipe, Recipes
from falctl.host.cache.stopping import Move, stop_if
from falctl.toolkit.model_source import ModelSource

_MODULE_BYTES: Final = 3000
"""Of one module with its Parameters, but for their bytes (measured: tracemalloc, tiny SDXL, 564 modules, 2026-11-23)."""
_VOCABULARIES: Final = (".json", ".txt", ".model")
_FILE_FACTOR: Final = 8
"""A vocabulary as tables of strings takes so much more than as a file."""


@dataclass(frozen=True, slots=True)
class _Model:
    pipeline: Any
    recipe: Recipe
    keys: Mapping[str, str]
    """Of its weighty components, by their names in the pipeline."""
    module_bytes: int
    """What it holds beside their bytes."""


class PipelineStore:
    """A `falctl.toolkit.model_store.ModelStore` of pipelines on one device."""

    def __init__(
        self,
        find: Callable[[str], ModelSource],
        *,
        device: Device,
        memory: HostMemory,
        dtype: Wanted,
        digests: FileDigests | None = None,
    ) -> None:
        """*find* says where a name's model is, and raises a RequestError for one that there is not."""
        self.device = device
        self._find = find
        self._memory = memory
        self._recipes = Recipes(dtype, digests or FileDigests())
        self._models: dict[str, _Model] = {}
        self._components: dict[str, HeldComponent] = {}
        self._packing: dict[str, Move] = {}
        """Of those that are being made."""
        self._sizes: dict[
            str, int
        ] = {}  # of components that were held once, where the estimate was a bit off
        self._lock = threading.Lock()  # of the four above; held for no move
        self._arrangements = Arrangements(device)

    # --- questions: any thread ----------------------------------------------------------------------

    @property
    def free_bytes(self) -> int:
        return self.device.free_bytes

    @property
    def total_bytes(self) -> int:
        return self.device.free_bytes + self._weights_bytes()

    @property
    def drawn_bytes(self) -> int:
        if not self.device.measures_drawings:
            return 0
        return max(0, self.device.used_bytes - self._weights_bytes())

    def check(self, name: str) -> None:
        self._recipe(name)

    def needs(self, name: str) -> tuple[Part, ...]:
        recipe = self._recipe(name)
        if recipe is None:
            return ()
        keys = self._keys(name, recipe)
        held = self.parts()
        return tuple(
            {
                key: held.get(key) or Part(key, self._size(key, part, recipe), "disk", host=False)
                for part in recipe.parts
                if (key := keys[part.name])
            }.values()
        )

    def peak_bytes(self, name: str, drawing: Drawing | None) -> int:
        recipe = self._recipe(name)
        if recipe is None:
            return 0
        element_bytes = getattr(torch, recipe.dtype).itemsize
        return activation_peak_bytes(
            recipe.folder.class_name, full_drawing(recipe.folder, drawing), element_bytes=element_bytes
        )

    def sizes(self, name: str) -> tuple[PartSize, ...]:
        """Return what *name* with its plain weights is made of, as far as room goes; () where nobody knows. As `needs`."""
        recipe = self._plain_recipe(name)
        return () if recipe is None else self._sizes_of(recipe, self._keys(name, recipe))

    def quantised(self, name: str) -> Mapping[str, tuple[PartSize, ...]]:
        """Return the same for each of its quantised weights, by their name, best first; blocks for headers of files."""
        recipe = self._plain_recipe(name)
        if recipe is None:
            return {}
        model = self._models.get(name)
        # The keys of what is not loaded would have all of the files read.
        keys = (
            {}
            if model is None or model.recipe.stamps != recipe.stamps
            else {model.recipe.weights: model.keys}
        )
        return {
            weights: self._sizes_of(self._recipes.with_weights(recipe, weights), keys.get(weights, {}))
            for weights in self._recipes.quantised(recipe).sets
        }

    def left_out(self, name: str) -> tuple[str, ...]:
        """Return which quantised weights *name* has that cannot be used, and why. As `quantised`."""
        recipe = self._plain_recipe(name)
        return () if recipe is None else self._recipes.quantised(recipe).left_out

    def loaded_weights(self, name: str) -> str | None:
        """Return which quantised weights of *name* are on the device or in host memory; None: none of any."""
        model = self._models.get(name)
        if model is None or model.recipe.weights is None:
            return None
        keys = {model.keys[part.name] for part in model.recipe.weighty if part.float8}
        there = any(part.tier != "disk" for key, part in self.parts().items() if key in keys)
        return model.recipe.weights if there else None

    def draws(self, name: str, drawing: Drawing | None) -> Draws | None:
        """Return what *drawing* is to the model *name*; None: nobody knows. None for *drawing*: its usual one."""
        recipe = self._recipe(name)
        if recipe is None:
            return None
        return Draws(
            recipe.folder.class_name,
            full_drawing(recipe.folder, drawing),
            recipe.dtype,
            getattr(torch, recipe.dtype).itemsize,
            max((size.nbytes for size in self.sizes(name) if size.role == "encoder"), default=0),
        )

    def parts(self) -> Mapping[str, Part]:
        with self._lock:
            return {key: component.part for key, component in self._components.items()}

    def module_bytes(self, name: str) -> int:
        model = self._models.get(name)
        return 0 if model is None else model.module_bytes

    def moved(self) -> Mapping[str, int]:
        with self._lock:
            on_their_way = {key: component.moved for key, component in self._components.items()}
            return {key: move.nbytes for key, move in self._packing.items()} | on_their_way

    def is_constructed(self, name: str) -> bool:
        model = self._models.get(name)
        recipe = self._recipe(name) if model is not None else None
        return model is not None and recipe is not None and self._is_of(model, name, recipe)

    # --- moves --------------------------------------------------------------------------------------

    def construct(self, name: str, cancelled: threading.Event | None = None) -> None:
        if self.is_constructed(name):
            return
        try:
            with told_of(name), CONSTRUCTING:
                stop_if(cancelled)
                recipe = self._recipe(name) or self._fetched(name)
                self._construct(name, recipe, cancelled)
        except BaseException:
            self._forget_unused()
            raise

    def fill(self, name: str, cancelled: threading.Event) -> None:
        with told_of(name):
            for component in self._components_of(name):
                component.fill(cancelled)

    def arrange(self, name: str, arrangement: Arrangement) -> None:
        """
        Have the model *name* run as *arrangement* says from now on; how it is placed counts from the next `place`.

        Moves nothing; its decoder works in tiles from now on, or no longer, if it is constructed.
        """
        model = self._models.get(name)
        self._arrangements.note(name, arrangement, None if model is None else model.pipeline)

    def place(
        self,
        name: str,
        how: How = "whole",
        *,
        filling: bool = False,
        cancelled: threading.Event | None = None,
    ) -> Any:
        with told_of(name):
            self._arrangements.begin(name, how, self._models[name].pipeline, self._parts_of(name))
            for part, component in self._parts_of(name).items():
                if how == "whole" or role_of(part) == "resident":
                    component.to_device(self.device, filling=filling, cancelled=cancelled)
        return self._models[name].pipeline

    def evict(self, key: str) -> None:
        if (component := self._components.get(key)) is not None:
            component.evict()

    def drop(self, key: str) -> None:
        if (component := self._components.get(key)) is not None:
            component.drop()

    def forget(self, name: str) -> None:
        with self._lock:
            for component in self._components.values():
                component.users.discard(name)
            known = self._models.pop(name, None) is not None
        self._arrangements.end(name)
        if known:
            self._forget_unused()

    # --- inside -------------------------------------------------------------------------------------

    def _recipe(self, name: str) -> Recipe | None:
        """Return the recipe of *name* with the weights that it was arranged to have; None: as below."""
        plain = self._plain_recipe(name)
        weights = self._arrangements.weights(name)
        return plain if plain is None else self._recipes.with_weights(plain, weights)

    def _plain_recipe(self, name: str) -> Recipe | None:
        """Return the recipe of *name*; None: it is on the Hub, and not (all) here."""
        source = self._find(name)
        folder = local_folder(source)
        try:
            with told_of(name):
                if folder is not None:
                    return replace(self._recipes.of(folder), loras=read_loras(source.loras))
        except ModelFilesError:
            if source.local:
                raise
        return None  # fetched in part, if at all

    def _fetched(self, name: str) -> Recipe:
        source = self._find(name)
        recipe = self._recipes.of(fetch(source, self._recipes.dtype))
        return replace(recipe, loras=read_loras(source.loras))

    def _keys(self, name: str, recipe: Recipe) -> dict[str, str]:
        with told_of(name):
            return self._recipes.keys(recipe, name)

    def _is_of(self, model: _Model, name: str, recipe: Recipe) -> bool:
        if (model.recipe.loras, model.recipe.weights) != (recipe.loras, recipe.weights):
            return False
        if model.recipe.stamps == recipe.stamps:
            return True
        same = model.recipe.light_files == recipe.light_files and model.recipe.variant == recipe.variant
        return same and model.keys == self._keys(name, recipe)

    def _construct(self, name: str, recipe: Recipe, cancelled: threading.Event | None) -> None:
        keys = self._recipes.keys(recipe, name)
        for part in recipe.weighty:
            # One by one, which is where it may end: to raise out of a library leaves its globals as it had set them.
            stop_if(cancelled)
            if (
                keys[part.name] not in self._components
                and (module := load_component(part, recipe)) is not None
            ):
                self._hold(module, part, keys[part.name], cancelled)
                del module
        stop_if(cancelled)
        there = {part: self._components[key].module for part, key in keys.items() if key in self._components}
        pipeline = load_pipeline(recipe, there)
        for part in recipe.weighty:
            key = keys[part.name]
            if (held := self._components.get(key)) is not None:
                held.has_also(part)
                if part.name not in there:  # equal to another component of the same pipeline
                    pipeline.register_modules(**{part.name: held.module})
            else:
                self._hold(getattr(pipeline, part.name), part, key, cancelled)
        if recipe.loras is not None:
            weights = add_loras(pipeline, recipe.loras, getattr(torch, recipe.dtype))
            self._hold(weights, recipe.loras, keys[recipe.loras.name], cancelled)
        require_same(recipe)
        with self._lock:
            for key, component in self._components.items():
                (component.users.add if key in keys.values() else component.users.discard)(name)
            self._models[name] = _Model(pipeline, recipe, keys, _module_bytes(pipeline, recipe))
        outdated = self._take_unused()
        for component in outdated:
            # Of this name's model before its files were replaced; a request may be drawing with it.
            component.abandon()
        if outdated:
            # Its hooks hold the modules. What was arranged for it was for these weights, if they were chosen for it.
            (self._arrangements.end if recipe.weights is None else self._arrangements.unhang)(name)
            del outdated, component
            self._collect()  # none is, as a rule

    def _hold(
        self, module: torch.nn.Module, part: Component, key: str, cancelled: threading.Event | None
    ) -> None:
        move = self._packing[key] = Move(cancelled)
        try:
            held = hold(module, part, key=key, memory=self._memory, move=move)
        except BaseException:
            del self._packing[key]
            raise
        with self._lock:
            before = self._components.get(key)
            self._components[key] = held
            del self._packing[key]
            self._sizes[key] = held.part.nbytes
        if before is not None:  # the same LoRA of a pipeline that is being made anew
            before.abandon()

    def _components_of(self, name: str) -> list[HeldComponent]:
        with self._lock:
            return [self._components[key] for key in dict.fromkeys(self._models[name].keys.values())]

    def _parts_of(self, name: str) -> dict[str, HeldComponent]:
        """Return the components by their names in the pipeline; one that has several, by its first."""
        model = self._models[name]
        names: dict[str, str] = {}
        for part, key in model.keys.items():
            names.setdefault(key, part)
        with self._lock:
            return {part: self._components[key] for key, part in names.items()}

    def _take_unused(self) -> list[HeldComponent]:
        with self._lock:
            unused = [key for key, component in self._components.items() if not component.users]
            return [self._components.pop(key) for key in unused]

    def _forget_unused(self) -> None:
        for component in self._take_unused():
            component.forget()
        self._collect()

    def _collect(self) -> None:
        gc.collect()  # a pipeline and its modules refer to each other
        self.device.give_back()

    def _sizes_of(self, recipe: Recipe, keys: Mapping[str, str]) -> tuple[PartSize, ...]:
        with self._lock:
            held = dict(self._components)
        return part_sizes(recipe, keys, held, estimate=lambda key, part: self._size(key, part, recipe))

    def _weights_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values() if part.tier == "vram")

    def _size(self, key: str, part: Component, recipe: Recipe) -> int:
        return self._sizes.get(key) or weight_bytes(part, recipe.dtype)


def _module_bytes(pipeline: Any, recipe: Recipe) -> int:
    modules = (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    count = sum(1 for part in modules for _module in part.modules())
    files = sum(stamp.size_bytes for name, stamp in recipe.light_files if name.endswith(_VOCABULARIES))
    return count * _MODULE_BYTES + files * _FILE_FACTOR
