"""Load a configuration in a test, from any of its sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from falctl.config import Config
from falctl.config_load import load_config
from falctl.errors import ConfigError


def load(
    text: str | bytes | None = None,
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    path = None
    if text is not None:
        assert folder is not None
        path = folder / "falctl.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, environ=environ or {}, flags=flags or {})


def refusal(
    text: str | bytes | None = None,
    *,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, folder=folder, environ=environ, flags=flags)
    return str(caught.value)
