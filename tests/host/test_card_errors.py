"""Which errors end a runner: those after which CUDA says that the process must be ended."""

from __future__ import annotations

import pytest
import torch

from falctl.errors import RequestError
from falctl.host.card_errors import breaks_the_card

ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(ILLEGAL),
        torch.AcceleratorError("CUDA error: an error that nobody has listed here"),
        RuntimeError(f"{ILLEGAL}\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA driver error: unspecified launch failure"),
    ],
)
def test_a_broken_context_is_known_by_its_type_or_its_text(error: Exception) -> None:
    assert breaks_the_card(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        torch.AcceleratorError(
            "CUDA error: no kernel image is available for execution on the device\nSearch for ..."
        ),
        torch.AcceleratorError("CUDA error: invalid configuration argument\nCUDA kernel errors might"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("misaligned address"),
        ValueError(f"the log says: {ILLEGAL}"),
        RequestError("no"),
    ],
)
def test_other_errors_leave_the_card_usable(error: Exception) -> None:
    assert not breaks_the_card(error)


def test_what_an_app_made_of_it_is_seen_through() -> None:
    poison = torch.AcceleratorError(ILLEGAL)
    made = RequestError("the picture failed")
    made.__cause__ = poison
    assert breaks_the_card(made)
    met = ValueError("while handling it")
    met.__context__ = made
    assert breaks_the_card(met)
    met.__suppress_context__ = True
    assert not breaks_the_card(met)


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError("1"), ValueError("2")
    one.__context__, other.__context__ = other, one
    assert not breaks_the_card(one)
