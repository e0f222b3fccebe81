"""What this process holds of its card."""

from __future__ import annotations

import sys


def reserved_bytes() -> int:
    """
    Return what torch's allocator holds of the first card, in tensors or kept for the next ones, its context not counted.

    0 until CUDA is used. Imports nothing, and never blocks; call where torch, if it is used at all, is fully imported.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved(0))
