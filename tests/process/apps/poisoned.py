"""Breaks its card once in a test, wherever it is used next, as CUDA tells it."""

from __future__ import annotations

import os
from pathlib import Path

from falctl import App, endpoint
from falctl.toolkit import RequestError


class AcceleratorError(RuntimeError):
    """Named as torch's; see tests/host/test_card_errors.py for the real one."""


class Poisoned(App):
    def setup(self) -> None:
        self.models = self.runner.model_cache(load=self._load)

    @endpoint("/once")
    def once(self) -> str:
        try:
            _break_once()
        except RuntimeError as error:
            raise RequestError("the picture failed") from error
        return "drawn"

    def provide_hints(self) -> tuple[str, ...]:
        return self.models.resident

    def _load(self, name: str) -> str:
        _break_once()
        return name


def _break_once() -> None:
    mark = Path(os.environ["FALCTL_TEST_POISON"])
    if not mark.exists():
        mark.touch()
        raise AcceleratorError("CUDA error: an illegal memory access was encountered")
