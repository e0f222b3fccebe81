"""
LoRAs beside a pipeline's weights: neither fused into them nor put into the modules that others use.

The modules that a LoRA changes are cloned with the very same Parameters, so that a clone costs no bytes and moves with
the original; the LoRA's layers go into the clone, and their weights, which are few, are a component of their own. So a
pipeline with LoRAs is a model like any other: it shares all that the plain one has, which is as if it had never been
touched, and one LoRA is swapped for another by moving the LoRA's bytes alone.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch

from falctl.errors import ModelFilesError
from falctl.host.cache.content_key import FileDigests
from falctl.host.cache.folder import Component
from falctl.host.cache.headers import Stamp, WeightFile, read_weight_file
from falctl.toolkit.model_source import lora_adapter

_HUNG: Final = ("forward", "encode", "decode", "to", "_hf_hook")
LORA: Final = "lora"
"""How the component of a pipeline's LoRAs is called."""


def read_loras(paths: Iterable[str]) -> Component | None:
    """
    Return the LoRA files *paths* as one component, None where there are none. Blocking: reads headers.

    Raises:
        ModelFilesError: one is not there or no sound safetensors file, or no library is installed that reads it.

    """
    files = tuple(_header(Path(path)) for path in paths)
    if not files:
        return None
    if importlib.util.find_spec("peft") is None:
        msg = "LoRAs need the library peft: pip install 'falctl[lora]'"
        raise ModelFilesError(msg)
    return Component(LORA, "peft", "LoraModel", files[0].path.parent, {}, files)


def _header(path: Path) -> WeightFile:
    try:
        return _header_as_of(path, Stamp.of(path.stat()))
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise ModelFilesError(msg) from error


@lru_cache(maxsize=256)
def _header_as_of(path: Path, _stamp: Stamp) -> WeightFile:
    return read_weight_file(path)


def lora_key(loras: Component, keys: Mapping[str, str], *, digests: FileDigests) -> str:
    """
    Return the key of *loras* in the model that *keys* are of. Blocking: hashes files not yet known.

    No two models have one key: a LoRA's weights are in the modules of one of them.
    """
    contents = digests.of_all(loras.weights)
    described = [[contents[file.path] for file in loras.weights], sorted(keys.items())]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def add_loras(pipeline: Any, loras: Component, dtype: torch.dtype) -> torch.nn.Module:
    """
    Have *pipeline* draw with *loras*, each at scale 1, in clones of its modules; return a module of their weights alone.

    Those are in host memory, in *dtype*. Constructs, so one at a time in a process.

    Raises:
        ModelFilesError: a file has nothing that fits a module of this pipeline; and what diffusers and peft raise.

    """
    clones, shared = _clone_modules(pipeline)
    names = [lora_adapter(i) for i in range(len(loras.weights))]
    own: list[torch.nn.Parameter] = []
    for name, file in zip(names, loras.weights, strict=True):
        pipeline.load_lora_weights(
            str(file.path.parent),
            weight_name=file.path.name,
            adapter_name=name,
            use_safetensors=True,
            local_files_only=True,
        )
        found = [p for clone in clones for p in clone.parameters() if id(p) not in shared]
        if not found:
            msg = f"{file.path} has nothing for a {type(pipeline).__name__}"
            raise ModelFilesError(msg)
        shared |= {id(p) for p in found}
        own += found
    pipeline.set_adapters(names, [1.0] * len(names))
    return _weights_of(own, dtype)


def _clone_modules(pipeline: Any) -> tuple[list[torch.nn.Module], set[int]]:
    """Put clones in the place of the modules that a LoRA may change; return them, and the ids of what they share."""
    clones: list[torch.nn.Module] = []
    shared: set[int] = set()
    for name in getattr(pipeline, "_lora_loadable_modules", ()):
        module = getattr(pipeline, name, None)
        if isinstance(module, torch.nn.Module):
            tensors = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
            clone = _bare(copy.deepcopy(module, dict(tensors)))
            pipeline.register_modules(**{name: clone})
            clones.append(clone)
            shared |= tensors.keys()
    return clones, shared


def _bare(clone: torch.nn.Module) -> torch.nn.Module:
    """Take from *clone* what was hung on the original: methods put before its class's, which run the original; hooks."""
    for module in clone.modules():
        for name in _HUNG:
            module.__dict__.pop(name, None)
        module._forward_pre_hooks.clear()  # noqa: SLF001 - whoever registered them has no handle for the clone's
        module._forward_hooks.clear()  # noqa: SLF001 - as above
    return clone


def _weights_of(parameters: Sequence[torch.nn.Parameter], dtype: torch.dtype) -> torch.nn.Module:
    module = torch.nn.Module()
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            # They were made where the weights are that they change, which may be on the device.
            parameter.data = parameter.data.to("cpu", dtype)
            module.register_parameter(str(i), parameter)
    return module
