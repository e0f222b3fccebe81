"""Recognise that a device or the machine had no room, without importing torch."""

from __future__ import annotations

from typing import Final

_NAMES: Final = frozenset({"OutOfMemoryError", "MemoryError"})
_TEXTS: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",  # expandable segments
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # there was no room for its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    # torch tries every way that cuDNN knows of, and forgets that none had room for its workspace. On a card that is too old
    # for the dtype it says the same; then the second try says it, too.
    "was unable to find an engine to execute this computation",
)
"""The CUDA libraries raise plain RuntimeErrors for it."""


def runs_out_of_memory(error: BaseException) -> bool:
    """Return whether *error* is an out-of-memory error, torch's or another's."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _NAMES) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)
    )
