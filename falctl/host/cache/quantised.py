"""
The quantised weights that a pipeline's folder has beside its plain ones, told from the headers of its files alone.

Quantised are the files of a component of which most bytes are float8, e4m3 or e5m2, whatever their variant is called.
Each such weight is the number itself, so that converting it up loses nothing and the way back brings the same bits.
Files that have scales beside their weights (ComfyUI's scaled float8) mean other numbers, and diffusers would draw noise
with them: they are told by the tensors that the plain files have not, and left out.

What stays float8 once loaded are weights of two dimensions or more; biases and norms are few, and converted up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from falctl.errors import ModelFilesError
from falctl.host.cache.folder import Component, PipelineFolder, read_variant, variants
from falctl.host.cache.headers import TensorEntry

UNNAMED: Final = "float8"
"""How quantised weights are called that are no variant: the folder's plain files."""
_FLOAT8: Final = frozenset({"F8_E4M3", "F8_E5M2"})
_LIBRARIES: Final = frozenset({"diffusers", "transformers"})
_SCALES: Final = frozenset({"scale_weight", "weight_scale", "weight_scale_inv", "scale_input", "input_scale"})
"""How the scales of a module's ``weight`` are called beside it, by those who make such files."""
_SCALED: Final = "scaled_fp8"
"""A tensor that says that there are scales."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """What a folder has."""

    sets: Mapping[str, tuple[Component, ...]] = field(default_factory=dict)
    """All components of the pipeline by the name of the weights, best first; those that have no such as in the folder."""
    left_out: tuple[str, ...] = ()
    """What was found and cannot be used, and why, for a person."""


def stays_float8(tensor: TensorEntry) -> bool:
    """Return whether *tensor* is float8 once its component is loaded, if that is to stay as its files are."""
    return tensor.dtype in _FLOAT8 and len(tensor.shape) > 1


def quantised_in(folder: PipelineFolder) -> Quantised:
    """Return the quantised weights beside, or in, the files that *folder* has chosen. Blocking: reads headers."""
    left_out: list[str] = []
    found = {part.name: _best_first(_quantised_files(folder, part, left_out)) for part in folder.components}
    names = dict.fromkeys(part.variant for part in _best_first(p for some in found.values() for p in some))
    sets: dict[str, tuple[Component, ...]] = {}
    for name in names:
        parts = tuple(_chosen(part, found[part.name], name) for part in folder.components)
        if parts not in sets.values():
            sets[name or UNNAMED] = parts
    return Quantised(sets, tuple(left_out))


def is_quantised(folder: PipelineFolder) -> bool:
    """Return whether any of the files that *folder* has chosen is."""
    return any(_is_float8(part) for part in folder.components)


def require_unscaled(folder: PipelineFolder) -> None:
    """
    Return if no component of *folder* is float8 with scales of its own.

    Raises:
        ModelFilesError: one is; its library would read the weights without the scales.

    """
    for part in folder.components:
        if _is_float8(part) and (scale := _scale_of(part)):
            msg = (
                f"{part.weights[0].path} has scales beside its float8 weights ({scale}), which {part.library} does not "
                "read; convert it to plain float8, or to the plain weights"
            )
            raise ModelFilesError(msg)


def _quantised_files(folder: PipelineFolder, part: Component, left_out: list[str]) -> list[Component]:
    found = []
    there = variants(folder.root, component=part.name) if part.weights else ()
    for variant in (None, *there):
        try:
            read = read_variant(folder.root, part, variant) if part.weights else None
        except ModelFilesError as error:
            left_out.append(str(error))
            continue
        if read is None or not _is_float8(read):
            continue
        if why := _unlike(read, part):
            left_out.append(f"{read.weights[0].path.relative_to(folder.root)} {why}")
        else:
            found.append(replace(read, float8=True))
    return found


def _is_float8(part: Component) -> bool:
    if part.library not in _LIBRARIES or "quantization_config" in part.config:
        return False  # what such a configuration means, its library knows
    return _bytes_of(part, _FLOAT8) > part.size_bytes / 2


def _unlike(read: Component, plain: Component) -> str:
    """Return why the files of *read* are not those of *plain* in float8; empty: they are."""
    if scale := _scale_of(read):
        return f"has scales beside its float8 weights ({scale}), which {read.library} does not read"
    names, wanted = _shapes(read), _shapes(plain)
    if others := sorted(names.keys() - wanted.keys()):
        return f"has tensors that the plain weights have not, such as {others[0]}"
    if lacking := sorted(name for name, shape in wanted.items() if names.get(name) != shape):
        return f"does not have the plain weights' {lacking[0]}, or has it in another shape"
    return ""


def _scale_of(part: Component) -> str:
    names = _shapes(part)
    for name in names:
        module, _, last = name.rpartition(".")
        if last == _SCALED or (last in _SCALES and f"{module}.weight" in names):
            return name
    return ""


def _shapes(part: Component) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for file in part.weights for tensor in file.tensors}


def _bytes_of(part: Component, dtypes: Iterable[str]) -> int:
    tensors = (tensor for file in part.weights for tensor in file.tensors)
    return sum(tensor.size_bytes for tensor in tensors if tensor.dtype in dtypes)


def _best_first(parts: Iterable[Component]) -> list[Component]:
    """Return *parts* with those first that lost least: three bits of mantissa before two, more bytes before fewer."""
    return sorted(parts, key=lambda p: (_bytes_of(p, {"F8_E5M2"}) > 0, -p.size_bytes, p.variant or ""))


def _chosen(part: Component, found: Iterable[Component], variant: str | None) -> Component:
    return next((one for one in found if one.variant == variant), next(iter(found), part))
