"""
A diffusers folder, read without diffusers: its components, and the weight files that `from_pretrained` would choose.

Which files are chosen was read in diffusers 0.42 and transformers 5.23, called with `use_safetensors=True`: a variant
where the component has any file of it, else the plain files; for a model of diffusers a sharded index before a single
file, for one of transformers a single file before an index. Nothing is chosen by its being in the folder: twins in other
formats and other variants lie there as well. Files are links into `blobs` in the Hub's own cache, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from falctl.errors import ModelFilesError
from falctl.host.cache.headers import WeightFile, read_json, read_weight_file

_JSON_BYTES_MAX: Final = 32 << 20
_SHARDS_MAX: Final = 4096
_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
_WEIGHTLESS: Final = (
    "Tokenizer",
    "TokenizerFast",
    "Scheduler",
    "Processor",
    "ProcessorFast",
    "FeatureExtractor",
)
"""How the classes of components that have no weights are called."""


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a pipeline; `weights` and `config` are empty for tokenizers, schedulers and processors."""

    name: str
    library: str
    class_name: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[WeightFile, ...]
    variant: str | None = None
    """Of its weight files; None: the plain ones."""
    float8: bool = False
    """Whether the weights that its files have in float8 are to stay so; see `falctl.host.cache.quantised`."""

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors as they are on disk."""
        return sum(tensor.size_bytes for file in self.weights for tensor in file.tensors)


@dataclass(frozen=True, slots=True)
class PipelineFolder:
    """A pipeline as its folder describes it, without the components that it says it has not."""

    root: Path
    class_name: str
    components: tuple[Component, ...]
    absent: tuple[str, ...] = ()
    """Those components: an SD3 without its T5, a pipeline without a safety checker."""


def read_folder(root: Path, *, variant: str | None = None) -> PipelineFolder:
    """
    Return what `from_pretrained(root, variant=variant, use_safetensors=True)` would load. Blocking: reads headers.

    Raises:
        ModelFilesError: a file is missing, half-written or damaged, leads out of the folder, is a pickle only, or is
            code that the model brings along; or there are only files of a variant that was not asked for.

    """
    root = root.resolve()
    index = read_json(root / "model_index.json", bytes_max=_JSON_BYTES_MAX)
    class_name = index.get("_class_name")
    if not isinstance(class_name, str):
        msg = f"{root}/model_index.json names no pipeline class of diffusers; falctl runs no code of a model's own"
        raise ModelFilesError(msg)
    parts = [_part(root, name, value) for name, value in index.items() if not name.startswith("_")]
    components = tuple(_component(root, *part, variant=variant) for part in parts if part is not None)
    absent = tuple(name for name, value in index.items() if value == [None, None])
    return PipelineFolder(root, class_name, components, absent)


def variants(root: Path, *, component: str = "*") -> tuple[str, ...]:
    """Return the variants that any, or this, *component* of the folder *root* has files of, sorted. Blocking."""
    files = (path.name.split(".") for path in root.glob(f"{component}/*.safetensors*"))
    # model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
    found = {words[1].split("-")[0] for words in files if len(words) == 3 and words[2] == "safetensors"}
    return tuple(sorted(found))


def read_variant(root: Path, component: Component, variant: str | None) -> Component | None:
    """
    Return *component* of the folder *root* with its files of *variant*, None: it has none. Blocking: reads headers.

    Raises:
        ModelFilesError: one of them is missing, half-written or damaged, or leads out of the folder.

    """
    names = {path.name for path in component.folder.iterdir()}
    for candidate in _candidates(component.library, variant):
        if candidate in names:
            weights = _weights(root, component.folder / candidate)
            return replace(component, weights=weights, variant=variant)
    return None


def _part(root: Path, name: str, value: Any) -> tuple[str, str, str] | None:
    """Return name, library and class of an entry of model_index.json, or None for what is no component."""
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)):
        return None  # a setting, such as requires_safety_checker, or [null, null]
    library, class_name = value
    plain = all(map(_is_plain, (name, library, class_name)))
    if not plain or (root / name / f"{library}.py").exists() or (root / f"{library}.py").exists():
        msg = f"{root}/model_index.json: {name!r} is {value!r}: not a class of an installed library, falctl runs no other"
        raise ModelFilesError(msg)
    return name, library, class_name


def _component(root: Path, name: str, library: str, class_name: str, *, variant: str | None) -> Component:
    folder = root / name
    if not _within(root, folder).is_dir():
        msg = f"{root} is not complete: the component {name!r} of its model_index.json is missing"
        raise ModelFilesError(msg)
    if class_name.endswith(_WEIGHTLESS):
        return Component(name, library, class_name, folder, {}, ())
    config = read_json(_within(root, folder / "config.json"), bytes_max=_JSON_BYTES_MAX)
    names = {path.name for path in folder.iterdir()}
    # As diffusers asks: by what follows the first dot of any file there.
    if variant and not any(n.split(".")[1:] and n.split(".")[1].startswith(variant) for n in names):
        variant = None
    found = read_variant(root, Component(name, library, class_name, folder, config, ()), variant)
    if found is None:
        raise ModelFilesError(_nothing_to_read(folder, names, variant))
    return found


def _candidates(library: str, variant: str | None) -> Iterable[str]:
    middle = f".{variant}" if variant else ""
    if library == "diffusers":
        stem = "diffusion_pytorch_model"
        yield f"{stem}.safetensors.index{middle}.json"
        if variant:
            yield f"{stem}.safetensors.{variant}.index.json"  # as diffusers wrote them up to 0.30
        yield f"{stem}{middle}.safetensors"
    else:
        yield f"model{middle}.safetensors"
        yield f"model.safetensors.index{middle}.json"


def _weights(root: Path, chosen: Path) -> tuple[WeightFile, ...]:
    if chosen.suffix != ".json":
        return (read_weight_file(_within(root, chosen)),)
    index = read_json(_within(root, chosen), bytes_max=_JSON_BYTES_MAX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(map(_is_plain, index.values())):
        msg = f"{chosen} has no weight_map from tensors to files beside it"
        raise ModelFilesError(msg)
    names = sorted(set(index.values()))
    if len(names) > _SHARDS_MAX:
        msg = f"{chosen} names {len(names)} files; at most {_SHARDS_MAX}"
        raise ModelFilesError(msg)
    files = tuple(read_weight_file(_within(root, chosen.with_name(name))) for name in names)
    held = [(tensor.name, name) for name, file in zip(names, files, strict=True) for tensor in file.tensors]
    if sorted(held) != sorted(index.items()):
        msg = (
            f"{chosen} does not fit the files that it names: some are of another version; download them again"
        )
        raise ModelFilesError(msg)
    return files


def _within(root: Path, path: Path) -> Path:
    """Return *path* with its links followed, where they stay within the folder or the Hub's cache of the same model."""
    real = path.resolve()
    allowed = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    if not any(real.is_relative_to(place) for place in allowed):
        msg = f"{path} leads out of the model's folder, to {real}"
        raise ModelFilesError(msg)
    return real


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name not in {"", ".", ".."} and not set(name) & {"/", "\\", "\0"}


def _nothing_to_read(folder: Path, names: Iterable[str], variant: str | None) -> str:
    others = sorted(n for n in names if ".safetensors" in n)
    if others:
        asked = f"the variant {variant!r}" if variant else "no variant"
        return f"{folder} has {', '.join(others[:4])}, and nothing that {asked} would load"
    pickles = sorted(n for n in names if n.endswith(_PICKLES))
    if pickles:
        return f"{folder} has its weights as a pickle only ({pickles[0]}), which falctl never reads; convert it to safetensors"
    return f"{folder} is not complete: it has no weights"
