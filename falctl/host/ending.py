"""The ways in which a host process ends itself, for its supervisor to start another."""

from __future__ import annotations

import logging
import os
from typing import Final, NoReturn

EXIT_CARD_BROKEN: Final = 70
"""Its CUDA context is unusable."""
EXIT_OVERDUE: Final = 72
"""A sync endpoint ran for longer than its app allows; nothing else can stop it."""


def end_process(code: int) -> NoReturn:
    """End at once: an app thread that does not return must not hold the process, as a plain exit would let it."""
    logging.shutdown()
    os._exit(code)
