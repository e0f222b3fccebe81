"""
How many bytes a component's weights take once loaded, from the headers of its files alone.

Floating-point tensors are converted to the wanted dtype, the others stay as they are; and some classes keep parts of
themselves in float32 whatever is asked, which the libraries say in a list on the class: T5-XXL in float16 takes 2 GB more
than its elements would, by its `wo` layers. Not counted, since no file has them: buffers that are not saved (a table of
positions in PixArt, 10 % of a tiny one and nothing of a real one).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Literal

from falctl.core.activations import Drawing
from falctl.core.blocks import NamedBytes, blocks_of
from falctl.host.cache.folder import Component, PipelineFolder
from falctl.host.cache.headers import DTYPE_BYTES, TensorEntry
from falctl.host.cache.quantised import stays_float8

Wanted = Literal["float32", "float16", "bfloat16"]
HEADER_NAMES: Final[dict[Wanted, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""How safetensors calls the dtypes that a pipeline is loaded in."""
_USUAL_PIXELS: Final = 1024
_FLOATS: Final = frozenset(name for name in DTYPE_BYTES if name.startswith(("F", "BF")))


def weight_bytes(component: Component, dtype: Wanted) -> int:
    """
    Return the bytes of all tensors of *component* loaded in *dtype*; tied weights are in its files once.

    Imports the component's class, which takes seconds for the first of diffusers; call it where that is loaded anyhow.
    """
    return sum(tensor.nbytes for tensor in _loaded(component, dtype))


def block_bytes(component: Component, dtype: Wanted) -> tuple[int, ...]:
    """Return the bytes of the blocks of *component*, loaded in *dtype*, that can come and go; see `weight_bytes`."""
    return tuple(block.nbytes for block in blocks_of(_loaded(component, dtype)))


def beside_bytes(component: Component, dtype: Wanted) -> int:
    """Return what a call of a part of *component* takes at most for a float8 weight in the dtype that it computes in."""
    if not component.float8:
        return 0
    up = replace(component, float8=False)
    pairs = zip(_loaded(component, dtype), _loaded(up, dtype), strict=True)
    return max((there.nbytes for here, there in pairs if here != there), default=0)


def _loaded(component: Component, dtype: Wanted) -> list[NamedBytes]:
    kept = float32_parts(component, dtype) if component.weights else ()
    tensors = [tensor for file in component.weights for tensor in file.tensors]
    dtypes = [
        tensor.dtype if component.float8 and stays_float8(tensor) else loaded_dtype(tensor, dtype, kept)
        for tensor in tensors
    ]
    return [
        NamedBytes((tensor.name,), tensor.numel * DTYPE_BYTES[name])
        for tensor, name in zip(tensors, dtypes, strict=True)
    ]


def loaded_dtype(tensor: TensorEntry, dtype: Wanted, kept: Iterable[str] = ()) -> str:
    """Return safetensors' name of the dtype that *tensor* has once loaded in *dtype*; *kept*: see `float32_parts`."""
    if tensor.dtype not in _FLOATS:
        return tensor.dtype
    if any(f".{part}." in f".{tensor.name}." for part in kept):
        return "F32"
    return HEADER_NAMES[dtype]


def float32_parts(component: Component, dtype: Wanted) -> tuple[str, ...]:
    """
    Return the names of modules that stay in float32 when *component* is loaded in *dtype*; empty where none does.

    diffusers keeps them in any dtype, transformers its `_keep_in_fp32_modules` in float16 and the strict ones in both.
    """
    found = _class(component)
    kept = set(getattr(found, "_keep_in_fp32_modules", None) or ())
    if component.library == "diffusers":
        return tuple(sorted(kept))
    strict = set(getattr(found, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == "float16":
        return tuple(sorted(kept | strict))
    return tuple(sorted(strict)) if dtype == "bfloat16" else ()


def full_drawing(folder: PipelineFolder, drawing: Drawing | None) -> Drawing:
    """Return *drawing* with the usual sides where it names none; None: the usual drawing."""
    usual = usual_drawing(folder)
    if drawing is None:
        return usual
    return replace(drawing, width=drawing.width or usual.width, height=drawing.height or usual.height)


def usual_drawing(folder: PipelineFolder) -> Drawing:
    """Return one image of the size that the pipeline was trained for, as its configuration tells, else of 1024 pixels."""
    configs = {component.name: component.config for component in folder.components}
    denoiser = configs.get("unet") or configs.get("transformer") or {}
    size = denoiser.get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not (isinstance(width, int) and isinstance(height, int)):
        return Drawing(_USUAL_PIXELS, _USUAL_PIXELS)
    blocks = configs.get("vae", {}).get("block_out_channels", ())
    scale = 2 ** max(0, len(blocks) - 1)
    return Drawing(width * scale, height * scale)


def _class(component: Component) -> type | None:
    """Return the class, or None if it lies in a module of diffusers' pipelines: none of those keeps anything."""
    if component.library not in {"diffusers", "transformers"}:
        return None
    found: type | None = getattr(importlib.import_module(component.library), component.class_name, None)
    return found
