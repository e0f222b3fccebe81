"""
Recognise an error after which every CUDA call of this process fails, without importing torch.

CUDA reports such an error at whatever call comes next, so it may arrive as torch.AcceleratorError, as a RuntimeError of an
older torch or of another library, or as the cause of what an app made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from falctl.toolkit.out_of_memory import runs_out_of_memory

_TEXTS: Final = (
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "misaligned address",
    "an illegal instruction was encountered",
    "invalid program counter",
    "hardware stack error",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error",
)
"""The errors of which CUDA says that "the process must be terminated and relaunched" (driver API, CUresult)."""
_HARMLESS: Final = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image is available for execution on the device",
    "operation not supported",
    "too many resources requested for launch",
)
"""Of one call, as CUDA refused it: the app's own mistake, or a torch that was not built for this card."""


def breaks_the_card(error: BaseException) -> bool:
    """Return whether *error*, or what it was raised from, makes CUDA unusable in this process."""
    return any(_breaks(one) for one in _chain(error))


def _breaks(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error) if isinstance(error, RuntimeError) else ""
    if "AcceleratorError" in names:
        first_line = text.partition("\n")[0]
        return not (runs_out_of_memory(error) or first_line.endswith(_HARMLESS))
    return "CUDA" in text and any(one in text for one in _TEXTS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it was raised from, each once."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)
