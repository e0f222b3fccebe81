"""A `PipelineStore` for this process: its libraries imported and quiet, its device, its dtype."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch

from falctl.host.cache.content_key import FileDigests
from falctl.host.cache.device import CpuDevice, CudaDevice
from falctl.host.cache.digest_file import DigestFile
from falctl.host.cache.estimate import Wanted
from falctl.host.cache.host_memory import HostMemory
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.toolkit.model_source import ModelSource

_UNTOLD_BYTES: Final = 4 << 30
"""What a CPU runner may take where no supervisor has counted the machine's memory."""


def open_store(  # noqa: PLR0913 - what the host knows, said once
    find: Callable[[str], ModelSource],
    *,
    memory: HostMemory,
    dtype: Wanted | Literal["auto"],
    cuda: bool,
    cpu_bytes: int | None = None,
    state: Path | None = None,
) -> PipelineStore:
    """
    Return a store on this process's card, or on the CPU with *cpu_bytes* for models and drawings (None: nobody has said).

    *state* is a folder for what the next process should not have to work out again. Blocking: imports diffusers,
    seconds that no request should pay for.
    """
    import_libraries()
    device = CudaDevice() if cuda else CpuDevice(_UNTOLD_BYTES if cpu_bytes is None else cpu_bytes)
    digests = FileDigests(None if state is None else DigestFile(state))
    return PipelineStore(
        find, device=device, memory=memory, dtype=wanted_dtype(dtype, cuda=cuda), digests=digests
    )


def wanted_dtype(configured: Wanted | Literal["auto"], *, cuda: bool) -> Wanted:
    """Return the dtype to load in: "auto" is bfloat16 where the card can, else float16; float32 on a CPU."""
    if configured != "auto":
        return configured
    if not cuda:
        return "float32"
    # Older cards than Ampere emulate it, many times slower.
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def import_libraries() -> None:
    """Import what constructs pipelines, with nothing of a model's own allowed and no progress bars; once is enough."""
    # Read when diffusers is imported: no pipeline of a folder or the Hub may bring code of its own.
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    import diffusers
    import transformers

    _ = diffusers.DiffusionPipeline  # imports most of diffusers
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it asks for torchvision, which nothing here needs
    # Nothing imported so far is ever dropped. Left out of it, a collection takes 1 ms instead of 340
    # (measured: a demo model loaded, 2-core Xeon), and each model that is let go of needs one.
    gc.collect()
    gc.freeze()
