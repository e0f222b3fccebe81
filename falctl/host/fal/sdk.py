"""
Make fal's SDK local the moment an app imports it, before the next line of the app runs.

The SDK reads parts of its environment while it is imported, and an app may copy its constants with ``from
fal.toolkit import …``, so both would be too late after the import. An app that never imports `fal` is not touched:
its ``FAL_KEY`` may be meant for something else.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from falctl.host.fal.storage import map_data_folder, read_our_files, store_locally
from falctl.redirect.sitecustomize import redirect_on_import

SDK: Final = "fal"
HOW_TO_INSTALL: Final = 'pip install "falctl[fal]"'

_CREDENTIALS: Final = ("FAL_KEY", "FAL_KEY_ID", "FAL_KEY_SECRET", "FAL_PROFILE", "FAL_FORCE_AUTH_BY_USER")
_ANY_KEY: Final = "local:local"
"""Not in the environment, where the SDK would find it and call the cloud with it."""
_CLOUD: Final = ("FAL_USE_LOCAL_UPLOADER", "FAL_API_SOCKET", "NOMAD_ALLOC_PORT_grpc", "FAL_APP_ROOT_PATH")
"""Switches by which the SDK talks to services that only fal's own machines have."""


@dataclass(frozen=True, slots=True)
class Local:
    """Where on this machine the SDK finds what it otherwise has in the cloud."""

    url: str
    """Where falctl listens: an app that calls others by fal's client finds them here."""
    data_dir: Path
    """What apps know as ``/data``."""


def make_local_on_import(local: Local) -> None:
    """Arrange that the first ``import fal`` of this process gives a local SDK. Call before the app is imported."""
    sys.meta_path.insert(0, _Watch(local))


def is_missing(error: BaseException) -> bool:
    """Return whether *error* says that the SDK is not installed."""
    return isinstance(error, ModuleNotFoundError) and error.name == SDK


class _Watch(importlib.abc.MetaPathFinder):
    """Finds `fal` as everybody else does, and adds to its loader what is to be done before and after."""

    def __init__(self, local: Local) -> None:
        self._local = local

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != SDK:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(SDK)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = _Localiser(SDK, spec.origin, done=self._localise)
            scrub(self._local)
            redirect_on_import(self._local.url, _ANY_KEY)
        return spec

    def _localise(self) -> None:
        store_locally()
        read_our_files()
        map_data_folder(self._local.data_dir)
        _hush()


class _Localiser(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, *, done: Callable[[], None]) -> None:
        super().__init__(name, path)
        self._done = done

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        self._done()


def scrub(local: Local) -> None:
    """Take from the environment whatever lets the SDK speak to the cloud: no key, no login, no upload service."""
    for name in (*_CREDENTIALS, *_CLOUD):
        os.environ.pop(name, None)
    nowhere = local.data_dir / ".no-login"
    os.environ["FAL_HOME_DIR"] = str(nowhere)
    os.environ["FAL_CONFIG_PATH"] = str(nowhere / "config.toml")
    os.environ["IS_ISOLATE_AGENT"] = "1"  # or the SDK refuses to make an instance of an app


def _hush() -> None:
    """Keep the SDK from printing every installed package, 3 KB, at each start of a runner."""
    module = sys.modules[f"{SDK}.app"]
    if hasattr(module, "_print_python_packages"):
        vars(module)["_print_python_packages"] = lambda: None
