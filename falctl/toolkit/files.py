"""Files that an app hands to its client by URL: stored in the state directory, served by the router."""

from __future__ import annotations

import errno
import mimetypes
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pydantic import BaseModel, Field

from falctl.clock import wall_s
from falctl.core.lifetimes import Lifetime
from falctl.errors import StorageFullError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_NAME_BYTES: Final = 24
"""192 random bits: whoever does not know the URL does not find the file."""
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{20,200}(?:\.x[0-9]{1,12})?(?:\.[a-z0-9]{1,8})?")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_SUFFIX: Final = re.compile(r"\.[a-z0-9]{1,8}")
_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_SUFFIXES: Final = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}


class FileStore:
    """The folder whose files the router serves under *url*; *lifetime* is that which the current request wants."""

    def __init__(
        self, folder: Path, *, url: str, lifetime: Callable[[], Lifetime | None] = lambda: None
    ) -> None:
        self._folder = folder
        self._url = url
        self._lifetime = lifetime

    def save(self, data: bytes, *, suffix: str, lifetime: Lifetime | None = None) -> str:
        """
        Write *data* under an unguessable name; return its URL. A reader sees all of it or nothing.

        It is kept as *lifetime* says, else as the current request does, else for `files.keep`.

        Raises:
            StorageFullError: the disk has no room for it.
            OSError: it cannot be written for another reason.
        """
        lifetime = lifetime or self._lifetime()
        mark = "" if lifetime is None else lifetime.mark(wall_s())
        name = secrets.token_urlsafe(_NAME_BYTES) + mark + suffix
        draft = self._folder / f".{name}.tmp"
        try:
            self._write(draft, data)
            draft.replace(self._folder / name)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            if error.errno in _FULL:
                msg = f"the answer's file of {len(data)} bytes could not be stored: {error.strerror}; ask again when there is room"
                raise StorageFullError(msg) from error
            raise
        return f"{self._url}/{name}"

    def name_of(self, url: str) -> str | None:
        """Return the name of the file that *url* is of, there or not; None: it is of none that could be here."""
        name = url.removeprefix(f"{self._url}/")
        return name if name != url and _NAME.fullmatch(name) else None

    def open(self, name: str) -> BinaryIO | None:
        """Return the file that `name_of` named, to be read, not following links; None: there is none any more."""
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        return os.fdopen(fd, "rb")

    def _write(self, path: Path, data: bytes) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            # Somebody wiped the state directory while we run; the next image is no worse for it.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)


_store: FileStore | None = None


def use_store(store: FileStore | None) -> None:
    """Let every `File` of this process be stored in *store*. Called by the host before `setup`."""
    global _store  # noqa: PLW0603 - one process hosts one app, and fal's `Image.from_pil` has no other way in
    _store = store


def current_store() -> FileStore | None:
    """Return where the files of this process are stored."""
    return _store


class File(BaseModel):
    """A stored file: what the client gets is this object, as JSON."""

    url: str
    content_type: str | None = None
    file_name: str | None = None
    file_size: int | None = None

    @classmethod
    def from_bytes(cls, data: bytes, content_type: str | None = None, file_name: str | None = None) -> File:
        """
        Store *data*. The URL ends as *file_name* does, else as *content_type* wants it.

        Raises:
            RuntimeError: outside a running falctl.
            StorageFullError: the disk is full, which answers the request with 507.
            OSError: it cannot be written for another reason.
        """
        return store_file(data, content_type, file_name)

    @classmethod
    def from_path(cls, path: str | Path, content_type: str | None = None) -> File:
        """Store a copy of the file at *path*. Raises as `from_bytes`, and OSError when it cannot be read."""
        path = Path(path)
        return cls.from_bytes(path.read_bytes(), content_type, path.name)


def store_file(
    data: bytes, content_type: str | None, file_name: str | None, *, lifetime: Lifetime | None = None
) -> File:
    """Store *data* as `File.from_bytes` does, for that long; None: as the current request wants it. Raises the same."""
    kind = content_type or mimetypes.guess_type(file_name or "")[0] or "application/octet-stream"
    url = _save(data, suffix=_suffix(file_name, kind), lifetime=lifetime)
    return File(url=url, content_type=kind, file_name=file_name or _last(url), file_size=len(data))


class Image(File):
    """A stored image."""

    width: int | None = Field(None, description="pixels")
    height: int | None = Field(None, description="pixels")

    @classmethod
    def from_pil(cls, pil_image: PilImage, format: str = "png") -> Image:  # noqa: A002 - fal's name for it
        """
        Store a PIL image as ``"png"``, ``"jpeg"`` or ``"webp"``.

        Raises: as `File.from_bytes`; ValueError for another format.
        """
        data, kind = encode_image(pil_image, format)
        url = _save(data, suffix=_SUFFIXES[kind])
        return cls(
            url=url,
            content_type=kind,
            file_name=_last(url),
            file_size=len(data),
            width=pil_image.width,
            height=pil_image.height,
        )


def encode_image(pil_image: PilImage, format: str) -> tuple[bytes, str]:  # noqa: A002 - as PIL calls it
    """Return the bytes of *pil_image* in *format* ("png", "jpeg", "webp"), and their content type."""
    name = format.lower().replace("jpg", "jpeg")
    if name not in _TYPES:
        msg = f"image format {format!r} is none of {', '.join(_TYPES)}"
        raise ValueError(msg)
    if name == "jpeg" and pil_image.mode not in {"RGB", "L"}:
        pil_image = pil_image.convert("RGB")  # JPEG knows no transparency
    buffer = BytesIO()
    pil_image.save(buffer, format=name)
    return buffer.getvalue(), _TYPES[name]


def _save(data: bytes, *, suffix: str, lifetime: Lifetime | None = None) -> str:
    if _store is None:
        msg = "files can be stored only by an app that runs under `falctl up`: there is no store in this process"
        raise RuntimeError(msg)
    return _store.save(data, suffix=suffix, lifetime=lifetime)


def _suffix(file_name: str | None, content_type: str) -> str:
    suffix = Path(file_name or "").suffix.lower() or _SUFFIXES.get(content_type)
    suffix = suffix or mimetypes.guess_extension(content_type) or ""
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _last(url: str) -> str:
    return url.rpartition("/")[2]
