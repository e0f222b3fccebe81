"""
Pipelines constructed by diffusers, by rules that leave nothing to its defaults.

The dtype is always said, weights come from safetensors files only, no model brings code along, and a folder that is on
this machine is never looked up on the Hub. Components that are held already are handed in, so that they are neither read
nor made again. diffusers and accelerate change globals of the process while they construct, and fail silently when two
do so at once: one lock for all of them.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from falctl.errors import FilesChangedError, HostMemoryFullError, ModelFilesError, RequestError
from falctl.host.cache.content_key import require_unchanged
from falctl.host.cache.estimate import Wanted
from falctl.host.cache.float8 import store_as_float8
from falctl.host.cache.folder import Component
from falctl.host.cache.headers import Stamp
from falctl.host.cache.recipes import VARIANTS, Recipe
from falctl.host.cache.stopping import LoadCancelledError
from falctl.host.telling import said
from falctl.toolkit.model_source import ModelSource
from falctl.toolkit.out_of_memory import runs_out_of_memory

CONSTRUCTING: Final = threading.RLock()
"""Held while a library constructs; modules must not be made or moved beside it."""
_LIBRARIES: Final = ("diffusers", "transformers")
"""Whose components are loaded by their class, as diffusers does it; others are of a pipeline's own module."""
_NOT_THE_FOLDERS_FAULT: Final = (
    RequestError,
    MemoryError,
    torch.OutOfMemoryError,
    HostMemoryFullError,
    LoadCancelledError,
)


def local_folder(source: ModelSource) -> Path | None:
    """Return the folder of *source* on this machine, whole or not; None if nothing of it was fetched. Blocking."""
    if source.local:
        return Path(source.place)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.place, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is a FileNotFoundError
        return None


def fetch(source: ModelSource, dtype: Wanted) -> Path:
    """
    Return the folder of the Hub id *source*, fetched in the variant of *dtype* if it has one. Blocking, for long.

    Raises:
        ModelFilesError: the Hub gives none, or cannot be reached, and not all of it is here; with what the Hub said.
        Exception: what else huggingface_hub and diffusers raise: many kinds.

    """
    from diffusers import DiffusionPipeline

    settings = {"use_safetensors": True, "trust_remote_code": False}
    try:
        try:
            return Path(DiffusionPipeline.download(source.place, variant=VARIANTS[dtype], **settings))
        except ValueError:  # it has no such variant
            return Path(DiffusionPipeline.download(source.place, **settings))
    except OSError as error:
        why: BaseException = error.__cause__ or error  # diffusers' own text gives advice to its caller
        msg = f"it is not (all) on this machine, and could not be fetched from the Hub: {said(why)}"
        raise ModelFilesError(msg) from error


def load_component(part: Component, recipe: Recipe) -> torch.nn.Module | None:
    """
    Return *part* of *recipe* as `load_pipeline` would make it, but by itself; None: only a pipeline knows how. Blocking.

    So a load that is cancelled can end between two components. It cannot end within one: diffusers puts the default
    dtype of the process back only if nothing raises, so that to raise from a hook, or out of a read, would leave every
    later module in the dtype of this one.
    """
    if part.library not in _LIBRARIES:
        return None
    kind: Any = getattr(importlib.import_module(part.library), part.class_name, None)
    if not hasattr(kind, "from_pretrained"):
        return None  # the pipeline says what is the matter
    dtype = getattr(torch, recipe.dtype)
    with CONSTRUCTING:
        module: torch.nn.Module = kind.from_pretrained(
            str(part.folder),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **({"variant": part.variant} if part.variant else {}),
        )
    if part.float8:
        store_as_float8(module, part, dtype)
    return module


def load_pipeline(recipe: Recipe, held: Mapping[str, torch.nn.Module]) -> Any:
    """
    Return the pipeline of *recipe*, in host memory, with the components *held* (by name) as they are. Blocking.

    Its new weights may be views of the files, which must not outlive the files: pack them, then `require_same`.

    Raises:
        ModelFilesError: diffusers or a library under it cannot load the folder.

    """
    from diffusers import DiffusionPipeline

    with CONSTRUCTING:
        pipeline = DiffusionPipeline.from_pretrained(
            str(recipe.folder.root),
            dtype=getattr(torch, recipe.dtype),
            variant=recipe.variant,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **dict.fromkeys(recipe.folder.absent),
            **held,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def require_same(recipe: Recipe) -> None:
    """
    Return if the weight files are those that *recipe* saw. Blocking: a stat of each.

    Raises:
        FilesChangedError: one was written, replaced or removed meanwhile.

    """
    for component in recipe.parts:
        for file in component.weights:
            try:
                stamp = Stamp.of(file.path.stat())
            except OSError as error:
                msg = f"{file.path} was removed while it was loaded"
                raise FilesChangedError(msg) from error
            require_unchanged(file, stamp)


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """
    Say that it is the model *name* that cannot be loaded, whatever the block raises because of its files.

    Raises:
        ModelFilesError: in place of what diffusers, safetensors, json and torch raise, each their own kinds, when they
            meet half a folder. Other RequestErrors, a lack of memory and a cancellation stay what they are.

    """
    try:
        yield
    except ModelFilesError as error:
        if error.detail.startswith(_refusal(name)):
            raise
        msg = f"{_refusal(name)}{error}"
        raise type(error)(
            msg
        ) from None  # it says all: how we came to it is nothing to whoever has the folder
    except _NOT_THE_FOLDERS_FAULT:
        raise
    except Exception as error:
        if runs_out_of_memory(error):  # libraries of CUDA raise plain RuntimeErrors for it
            raise
        first_line = (str(error).splitlines() or [""])[0]
        msg = f"{_refusal(name)}{type(error).__name__}: {first_line}"
        raise ModelFilesError(msg) from error


def _refusal(name: str) -> str:
    return f"Model {name!r} cannot be loaded: "
