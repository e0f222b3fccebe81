"""The harness for tests that are not about cards: where there are some, falctl does not see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.process import harness
from tests.process.harness import Ended

_NO_CARDS: Final = {"CUDA_VISIBLE_DEVICES": ""}


class Falctl(harness.Falctl):
    """`falctl up` with CPU runners on every machine."""

    def __init__(
        self,
        app: str | None = "runners.echo:Echo",
        *,
        config: str = "",
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        python_path: Sequence[Path] = (),
        start: bool = True,
    ) -> None:
        environ = {**_NO_CARDS, **(env or {})}
        super().__init__(app, config=config, env=environ, args=args, python_path=python_path, start=start)


def end_of(
    app: str = "runners.echo:Echo",
    *,
    config: str = "",
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
) -> Ended:
    """Return how such a `falctl up` ends by itself; asserts that it leaves nothing behind."""
    return harness.end_of(app, config=config, env={**_NO_CARDS, **(env or {})}, args=args)
