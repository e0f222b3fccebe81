"""
Give fal's toolkit our folders in place of its CDN and its network disk.

The SDK looks its repositories up by name in a registry at the time of a call, so replacing the entries works for
every version of it and however an app imported `Image`. With no entry left that uploads, nothing can leave; its own hook for
uploads (`FAL_API_SOCKET`) falls back to the CDN when it is refused.
"""

from __future__ import annotations

import importlib
import mimetypes
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from falctl.core.lifetimes import Lifetime, read_preference
from falctl.toolkit.files import current_store, store_file

_KEPT: Final = frozenset({"in_memory", "gcp_storage", "r2"})
"""In memory is local anyway; the other two are the author's own buckets, named explicitly and with keys of theirs."""
_DATA: Final = "/data"
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


def read_our_files() -> None:
    """
    Let apps read back what we serve: exactly the URLs of stored files, from the disk.

    The SDK's guard refuses every private address, so that a client's URL cannot make an app read from the local
    network. It stays in force for all others, our own address included: asked for each URL anew, it is in the way of a
    redirect to us, too. No request is made, so nothing here depends on API keys or certificates. Old SDKs have no guard.
    """
    try:
        guard: Any = importlib.import_module("fal.toolkit.utils.ssrf")
    except ModuleNotFoundError:
        return
    ask: Callable[..., Any] = guard._request_resolved_url  # noqa: SLF001 - there since there is a guard (1.76)

    def request(parsed: urllib.parse.SplitResult, **options: Any) -> Any:
        store = current_store()
        name = None if store is None else store.name_of(parsed.geturl())
        if store is None or name is None:
            return ask(parsed, **options)
        file = store.open(name)
        if file is None:
            raise guard.SSRFHTTPStatusError(404)
        with file:
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            return _answer(guard, file, kind, options)

    guard._request_resolved_url = request  # noqa: SLF001


def _answer(guard: Any, file: BinaryIO, kind: str, options: Mapping[str, Any]) -> Any:
    """Return what the SDK makes of an answer whose body is *file*, by its own code."""
    size, most = os.fstat(file.fileno()).st_size, options["max_size"]
    headers = {"content-length": str(size), "content-type": kind}
    if options["body_mode"] == "headers":
        return guard.SafeResponse(200, headers)
    if (tell := options["on_response_headers"]) is not None:
        tell(headers)
    guard._raise_if_declared_size_exceeds_limit(headers, most)  # noqa: SLF001
    if options["body_mode"] == "file":
        target, chunk = options["target_path"], options["chunk_size"]
        guard._stream_response_to_file(file, target, most, expected_size=size, chunk_size=chunk)  # noqa: SLF001
        return guard.SafeResponse(200, headers)
    content = guard._read_response_content(file, most, expected_size=size)  # noqa: SLF001
    return guard.SafeResponse(200, headers, content)


def map_data_folder(folder: Path) -> None:
    """Let the SDK's paths under ``/data`` be under *folder*, in every module that has them already."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    utils: Any = importlib.import_module("fal.toolkit.utils.download_utils")
    root = utils.FAL_PERSISTENT_DIR
    moved = {name: folder / getattr(utils, name).relative_to(root) for name in _DATA_NAMES}
    for name, module in list(sys.modules.items()):
        if name == "fal" or name.startswith("fal."):
            vars(module).update({key: path for key, path in moved.items() if key in vars(module)})


def make_data_folders(mounts: Iterable[str], folder: Path) -> None:
    """Make the folders of ``data_mounts`` that lie under ``/data``, which is *folder* here. Blocks."""
    for mount in mounts:
        if (path := _under_data(mount, folder)) is not None:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)


def outside_data(mounts: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Return those of ``data_mounts`` that do not lie under ``/data``."""
    return tuple(mount for mount in mounts if _under_data(mount, folder) is None)


def _under_data(mount: str, folder: Path) -> Path | None:
    path = PurePosixPath(os.path.normpath(PurePosixPath(_DATA) / mount))
    return folder / path.relative_to(_DATA) if path.is_relative_to(_DATA) else None
