"""
What a component is, as one digest: equal keys mean equal modules, whichever folder they were loaded from.

A key covers the class, its configuration without what only says where it came from, the contents of its weight files,
the dtype, whether float8 stays float8, and the versions of the libraries that construct it. Contents are hashed once for each state of a file and
remembered by its stamp. A stamp taken less than two seconds after the file's last change is not remembered: within the
clock tick of a file system a second write would leave the stamp as it is (git's "racily clean").
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from falctl.clock import wall_s
from falctl.errors import FilesChangedError, ModelFilesError
from falctl.host.cache.digest_file import DigestFile
from falctl.host.cache.folder import Component
from falctl.host.cache.headers import Stamp, WeightFile, open_regular

_REMEMBERED_MAX: Final = 4096
_SETTLED_S: Final = 2.0
_THREADS: Final = 4
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ORIGIN: Final = frozenset(
    {"_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype"}
)
"""Keys of a configuration that say whence it comes; the dtype that is loaded is in the key by itself."""


class FileDigests:
    """
    SHA-256 of files' contents, remembered by their stamps; may be used by several threads at once.

    What the Hub's own cache stores under its digest is believed to have it, as the Hub's client believes.
    """

    def __init__(self, kept: DigestFile | None = None) -> None:
        self._known: OrderedDict[Stamp, str] = OrderedDict()
        self._kept = kept
        self._lock = threading.Lock()

    def of(self, file: WeightFile) -> str:
        """
        Return the digest of *file* in hex. Blocking: reads the whole file, unless it is remembered.

        Raises:
            ModelFilesError: the file is no longer what it was when its header was read.

        """
        known = _named(file) or self._recall(file.stamp)
        if known is not None:
            require_unchanged(file, Stamp.of(_stat(file)))
            return known
        digest = _hashed(file)
        if is_settled(file.stamp):
            self._remember({file.stamp: digest})
            if self._kept is not None:
                self._kept.add(file.stamp, digest)
        return digest

    def of_all(self, files: Iterable[WeightFile]) -> dict[Path, str]:
        """Return the digest of each of *files* by its path, several hashed at the same time; else as `of`."""
        different = {file.path: file for file in files}
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="hash-weights") as pool:
            return dict(zip(different, pool.map(self.of, different.values()), strict=True))

    def _recall(self, stamp: Stamp) -> str | None:
        with self._lock:
            if stamp not in self._known and self._kept is not None:
                self._add(self._kept.news())
            return self._known.get(stamp)

    def _remember(self, found: Mapping[Stamp, str]) -> None:
        with self._lock:
            self._add(found)

    def _add(self, found: Mapping[Stamp, str]) -> None:
        self._known.update(found)
        while len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)


def component_key(
    component: Component, *, dtype: str, versions: Mapping[str, str], digests: Mapping[Path, str]
) -> str:
    """
    Return the key of *component* loaded in *dtype*, 64 hex digits.

    *versions* are those of the libraries that construct it, by name; *digests* those of its weight files.
    """
    config = {key: value for key, value in component.config.items() if key not in _ORIGIN}
    described = {
        "library": component.library,
        "class": component.class_name,
        "config": config,
        "weights": [digests[file.path] for file in component.weights],
        "dtype": dtype,
        **({"float8": True} if component.float8 else {}),
        "versions": dict(versions),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _named(file: WeightFile) -> str | None:
    """Return the digest that the name of a large file in the Hub's cache is."""
    real = file.path.resolve()
    return real.name if real.parent.name == "blobs" and _SHA256.fullmatch(real.name) else None


def is_settled(stamp: Stamp) -> bool:
    """Return whether the last change of what bears *stamp* is so long ago that the next one will change the stamp."""
    return wall_s() - max(stamp.mtime_ns, stamp.ctime_ns) / 1e9 >= _SETTLED_S


def require_unchanged(file: WeightFile, stamp: Stamp) -> None:
    """
    Return if *stamp* is the one that *file* had when its header was read.

    Raises:
        FilesChangedError: it is another.

    """
    if stamp != file.stamp:
        msg = f"{file.path} was written or replaced while it was read; try again when that has ended"
        raise FilesChangedError(msg)


def _hashed(file: WeightFile) -> str:
    with os.fdopen(open_regular(file.path), "rb", buffering=0) as opened:
        require_unchanged(file, Stamp.of(os.fstat(opened.fileno())))
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        require_unchanged(file, Stamp.of(os.fstat(opened.fileno())))
    return digest


def _stat(file: WeightFile) -> os.stat_result:
    try:
        return file.path.stat()
    except OSError as error:
        msg = f"{file.path} cannot be read: {error.strerror}"
        raise ModelFilesError(msg) from error
