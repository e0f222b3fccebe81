"""
Modules whose weights stay float8, on the host and on the device, and that compute in the dtype they were loaded in.

Libraries convert float8 up when they load it. Here it is converted back, which is exact, and the module is made an
instance of a subclass of its class in which each such weight is a property: whoever reads ``module.weight``, the module
itself or one around it, gets the weight converted up, for as long as that reader keeps it. What holds the Parameters
(arenas, rings of blocks, LoRAs' clones) sees the float8. Nothing is written when a module is called, so that threads may
run it at the same time, and a call that is cancelled leaves nothing behind. diffusers' layerwise casting, which does
the same by moving the weights to and fro, would take them out of their arena into memory of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from typing import Any, Final, cast

import torch

from falctl.host.cache.folder import Component
from falctl.host.cache.quantised import stays_float8
from falctl.host.cache.reading import TORCH_DTYPES

FLOAT8: Final = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
_COMPUTES: Final = "_falctl_computes"
"""Where a module keeps the dtypes that its weights are read in, by their names."""
_DTYPE: Final = "dtype"
"""What models call their own dtype, which they find out from their first weight."""
_SAMPLES: Final = 1 << 16
"""Elements of a weight of which it is seen that they are float8's: all of one that was converted up are."""


def store_as_float8(module: torch.nn.Module, component: Component, dtype: torch.dtype) -> None:
    """
    Have *module*, just loaded in *dtype* from the files of *component*, keep as float8 what those have in float8.

    A weight that is not what float8 can hold stays as it is, whatever its name says. Blocks for the conversion.
    """
    kinds = _kinds(component)
    likely = tuple(dict.fromkeys(kind for kind in kinds.values() if kind is not None))
    computes: dict[torch.nn.Module, dict[str, torch.dtype]] = {}
    converted: dict[int, torch.dtype] = {}
    for owner, name, path, weight in _weights_of(module):
        if id(weight) not in converted:  # else it is tied, and was met under another name
            before, kind = weight.dtype, kinds.get(path)
            if path in kinds:
                done = kind is not None and _convert(weight, kind, samples=_SAMPLES)
            else:  # the library has renamed it, or it is in no file
                done = any(_convert(weight, kind, samples=weight.numel()) for kind in likely)
            if not done:
                continue
            converted[id(weight)] = before
        computes.setdefault(owner, {})[name] = converted[id(weight)]
    for part in module.modules():
        if isinstance(getattr(type(part), _DTYPE, None), property):
            computes.setdefault(part, {})[_DTYPE] = dtype
    for part, dtypes in computes.items():
        part.__dict__[_COMPUTES] = dtypes
        part.__class__ = _computing(cast("Hashable", type(part)), frozenset(dtypes))


def beside_bytes(module: torch.nn.Module) -> int:
    """Return what a call of one of the modules of *module* takes at most for a float8 weight that it converts up."""
    return max(
        (
            weight.numel() * dtype.itemsize
            for part in module.modules()
            for name, dtype in part.__dict__.get(_COMPUTES, {}).items()
            if name != _DTYPE and torch.nn.Embedding not in type(part).__bases__
            if (weight := _stored(part, name)) is not None
        ),
        default=0,
    )


def _kinds(component: Component) -> Mapping[str, torch.dtype | None]:
    """Return the float8 of each tensor in the files that stays so, None for each other, by their names."""
    return {
        tensor.name: TORCH_DTYPES[tensor.dtype] if stays_float8(tensor) else None
        for file in component.weights
        for tensor in file.tensors
    }


def _weights_of(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, str, torch.Tensor]]:
    """Yield each weight that may be float8: its owner, its name there and in *module*, and itself."""
    for path, owner in module.named_modules():
        passing = owner._non_persistent_buffers_set  # noqa: SLF001 - torch has no other way, nor to tell whose they are
        for name, weight in (*owner._parameters.items(), *owner._buffers.items()):  # noqa: SLF001 - as above
            saved = weight is not None and name not in passing
            if saved and weight.dim() > 1 and weight.is_floating_point():
                yield owner, name, f"{path}.{name}" if path else name, weight


def _convert(weight: torch.Tensor, kind: torch.dtype, *, samples: int) -> bool:
    """Make *weight* float8 of *kind*, unless some of *samples* of its elements would change."""
    flat = weight.data.flatten()
    some = flat[:: max(1, flat.numel() // samples)] if samples else flat
    if not torch.equal(some.to(kind).to(some.dtype), some):
        return False
    weight.data = weight.data.to(kind)
    return True


@cache
def _computing(cls: type[torch.nn.Module], names: frozenset[str]) -> type[torch.nn.Module]:
    """Return a subclass of *cls* that reads its weights *names* in the dtype that they are computed in."""
    members: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    members |= {name: _read_up(name) for name in names if name != _DTYPE}
    if _DTYPE in names:
        members[_DTYPE] = _own_dtype(cls)
    if cls is torch.nn.Embedding and "weight" in names:
        members["forward"] = _embed
    return type(cls.__name__, (cls,), members)


def _stored(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """Return what is behind the property."""
    return module._parameters[name] if name in module._parameters else module._buffers[name]  # noqa: SLF001 - see above


def _read_up(name: str) -> property:
    def read(self: torch.nn.Module) -> torch.Tensor | None:
        weight = _stored(self, name)
        if weight is None or weight.dtype not in FLOAT8:
            return weight
        up = weight.detach().to(self.__dict__[_COMPUTES][name])
        # torch has other kernels for weights that could be trained: in float16 on a CPU they differ in the last bit.
        return up.requires_grad_(weight.requires_grad)

    return property(read)


def _own_dtype(cls: type[torch.nn.Module]) -> property:
    inner = cast("property", getattr(cls, _DTYPE))

    def read(self: torch.nn.Module) -> torch.dtype:
        assert inner.fget is not None
        dtype: torch.dtype = inner.fget(self)
        return self.__dict__[_COMPUTES][_DTYPE] if dtype in FLOAT8 else dtype

    return property(read)


def _embed(self: torch.nn.Embedding, indices: torch.Tensor) -> torch.Tensor:
    """Look *indices* up before they are converted: a table of words is large, and few of its rows are asked for."""
    weight = self._parameters["weight"]
    assert weight is not None
    if weight.dtype not in FLOAT8 or self.max_norm is not None:
        return torch.nn.Embedding.forward(self, indices)
    rows = weight.data.view(torch.uint8)[indices].view(weight.dtype)
    return rows.to(self.__dict__[_COMPUTES]["weight"])
