"""The ways in which a host process ends itself, for its supervisor to start another."""

from __future__ import annotations

import logging
import os
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End at once: an app thread that does not return must not hold the process, as a plain exit would let it."""
    logging.shutdown()
    os._exit(code)
