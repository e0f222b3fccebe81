"""
Give fal's toolkit our folders in place of its CDN and its network disk.

The SDK looks its repositories up by name in a registry at the time of a call, so replacing the entries works for
every version of it and however an app imported `Image`. With no entry left that uploads, nothing can leave.
"""

from __future__ import annotations

import importlib
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from falctl.core.lifetimes import Lifetime, read_preference
from falctl.toolkit.files import store_file

_KEPT: Final = frozenset({"in_memory", "gcp_storage", "r2"})
"""In memory is local anyway; the other two are the author's own buckets, named explicitly and with keys of theirs."""
_DATA_NAMES: Final = ("FAL_PERSISTENT_DIR", "FAL_REPOSITORY_DIR", "FAL_MODEL_WEIGHTS_DIR")


def store_locally() -> None:
    """Let every repository of the SDK that would upload to fal store in our file store."""
    module: Any = importlib.import_module("fal.toolkit.file.file")
    types: Any = importlib.import_module("fal.toolkit.file.types")
    repository = _make_repository(types.FileRepository)
    for name in module.BUILT_IN_REPOSITORIES:
        if name not in _KEPT:
            module.BUILT_IN_REPOSITORIES[name] = repository


def _make_repository(base: type[Any]) -> type[Any]:
    class LocalRepository(base):  # type: ignore[misc]  # the SDK is not there when types are checked
        """A `FileRepository` of the SDK over our store; what it is told of multipart does not matter."""

        def save(self, data: Any, *_args: Any, **options: Any) -> str:
            stored = store_file(data.data, data.content_type, data.file_name, lifetime=_lifetime(options))
            return stored.url

        def save_file(
            self, file_path: str | Path, content_type: str, *_args: Any, **options: Any
        ) -> tuple[str, None]:
            path = Path(file_path)
            stored = store_file(path.read_bytes(), content_type, path.name, lifetime=_lifetime(options))
            return stored.url, None

    return LocalRepository


def _lifetime(options: dict[str, Any]) -> Lifetime | None:
    """Return what the SDK was told by its app, or found in the request that it knows; None: nothing."""
    preference = options.get("object_lifecycle_preference")
    return read_preference(preference) if isinstance(preference, dict) else None


def allow_our_files(files_url: str) -> None:
    """
    Let apps read back what we serve: exactly the address of *files_url* passes the SDK's guard.

    The guard refuses every private address, so that a client's URL cannot make an app read from the local network;
    it stays in force for all others. Old SDKs have none.
    """
    try:
        guard: Any = importlib.import_module("fal.toolkit.utils.ssrf")
    except ModuleNotFoundError:
        return
    ours = urllib.parse.urlsplit(files_url)
    refusing: Callable[[str, int | None], list[str]] = guard.resolve_and_validate_host

    def resolve(hostname: str, port: int | None) -> list[str]:
        if (hostname, port) == (ours.hostname, ours.port):
            return [hostname]
        return refusing(hostname, port)

    guard.resolve_and_validate_host = resolve


def map_data_folder(folder: Path) -> None:
    """Let the SDK's paths under ``/data`` be under *folder*, in every module that has them already."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    utils: Any = importlib.import_module("fal.toolkit.utils.download_utils")
    root = utils.FAL_PERSISTENT_DIR
    moved = {name: folder / getattr(utils, name).relative_to(root) for name in _DATA_NAMES}
    for name, module in list(sys.modules.items()):
        if name == "fal" or name.startswith("fal."):
            vars(module).update({key: path for key, path in moved.items() if key in vars(module)})
