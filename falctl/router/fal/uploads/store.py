"""
What is being sent, on the disk: drafts that become stored files whole, or not at all.

    uploads/{name}.{random}.tmp      a file that comes in one piece
    uploads/{name}/{number}          a part of one that comes in many, and beside it drafts of parts
    uploads/{name}.{random}.joining  such a folder while its parts are put together

`name` is what the file will be called in the folder of stored files. Nothing is held in memory but sizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from falctl.errors import BadRequestError, BodyTooLargeError, ConflictError, RequestError, StorageFullError

log = logging.getLogger(__name__)

_WRITE_BYTES: Final = 1 << 20
"""One trip to a thread for so much; what one upload holds in memory."""
PARTS_MAX: Final = 10_000
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class UploadStore:
    """Owner of the folder of uploads; *files* is where they end. ``max_bytes`` of one file is changed by a reload."""

    def __init__(self, folder: Path, files: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._files = files
        self.max_bytes = max_bytes
        self._sizes: dict[str, int] = {}
        """Bytes in the parts of each upload, drafts included."""
        self._joining: set[str] = set()

    async def receive(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        """
        Store a file that comes whole; return its size.

        Raises:
            BodyTooLargeError, StorageFullError, and whatever *chunks* raises: nothing is left of it.
        """
        draft = self._folder / f"{name}.{secrets.token_hex(8)}.tmp"
        with self._dropped_on_failure(draft):
            size = await self._write(draft, chunks, self._check)
            await asyncio.to_thread(self._publish, draft, name)
        return size

    async def receive_part(self, name: str, number: int, chunks: AsyncIterator[bytes]) -> str:
        """Store a part; return its etag. One that is sent again replaces the first. Raises as `receive`, and ConflictError."""
        folder = self._folder / name
        draft = folder / f"{number}.{secrets.token_hex(8)}.tmp"
        found, former = await asyncio.to_thread(lambda: (_bytes_in(folder), _size(folder / str(number))))
        self._sizes.setdefault(name, found)
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            self._grow(name, size - counted)
            counted = size
            self._check(self._sizes[name] - former)

        try:
            with self._dropped_on_failure(draft):
                await self._write(draft, chunks, count)
                try:
                    replaced, etag = await asyncio.to_thread(_take_place, draft, folder / str(number))
                except FileNotFoundError as error:  # `_join` has taken the folder
                    msg = f"part {number} comes too late: its upload has been put together, or was given up"
                    raise ConflictError(msg) from error
        except BaseException:
            self._grow(name, -counted)
            raise
        self._grow(name, -replaced)
        return etag

    async def join(self, name: str, parts: Sequence[tuple[int, str]]) -> None:
        """
        Make the file of its *parts*, numbers and etags, in the order of the numbers. Again: nothing happens.

        Raises:
            BadRequestError: a part that was not sent, or another than was told.
            ConflictError: it is being put together.
            StorageFullError: the disk is full; nothing is left of it.
        """
        if name in self._joining:
            msg = "this upload is being put together by another request"
            raise ConflictError(msg)
        self._joining.add(name)
        self._sizes.pop(name, None)
        try:
            await asyncio.to_thread(self._join, name, sorted(parts))
        finally:
            self._joining.discard(name)

    async def sweep_for_ever(self, *, older_than_s: float, every_s: float) -> None:
        """Delete what nobody has gone on with, again and again, in a thread."""
        while True:
            await asyncio.to_thread(self.sweep, older_than_s)
            for name in [name for name in self._sizes if not (self._folder / name).exists()]:
                del self._sizes[name]
            await asyncio.sleep(every_s)

    def sweep(self, older_than_s: float) -> int:
        """Delete what has not grown for *older_than_s*; return how many that were. Blocks, and never raises."""
        oldest = time.time_ns() - int(older_than_s * 1e9)  # a file's age is between two wall-clock times
        stale = [path for path in _listed(self._folder) if _touched_ns(path) < oldest]
        for path in stale:
            _remove(path)
        return len(stale)

    def begin(self) -> None:
        """Make the folder, and delete what a former router was in the middle of. Blocks."""
        self._make_folder(self._folder)
        for path in _listed(self._folder):
            if path.suffix in (".tmp", ".joining"):
                _remove(path)
            for draft in _listed(path):
                if draft.suffix == ".tmp":
                    _remove(draft)

    # --- parts -------------------------------------------------------------------------------------

    def _grow(self, name: str, by_bytes: int) -> None:
        self._sizes[name] = self._sizes.get(name, 0) + by_bytes

    def _check(self, size: int) -> None:
        if size > self.max_bytes:
            msg = f"the file is over {self.max_bytes} bytes (files.max_upload)"
            raise BodyTooLargeError(msg)

    async def _write(self, draft: Path, chunks: AsyncIterator[bytes], count: Callable[[int], None]) -> int:
        size = 0
        fd = await asyncio.to_thread(self._open, draft)
        try:
            async for piece in _gathered(chunks):
                size += len(piece)
                count(size)
                await asyncio.to_thread(_write_all, fd, piece)
        finally:
            os.close(fd)
        return size

    def _open(self, draft: Path) -> int:
        self._make_folder(draft.parent)
        return os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _make_folder(self, folder: Path) -> None:
        folder.mkdir(
            mode=0o700, parents=True, exist_ok=True
        )  # somebody may wipe the state directory while we run

    def _publish(self, draft: Path, name: str) -> None:
        self._make_folder(self._files)
        draft.replace(self._files / name)

    def _join(self, name: str, parts: Sequence[tuple[int, str]]) -> None:
        folder = self._folder / name
        if not folder.exists():
            if (self._files / name).exists():
                return  # a client that missed our answer asks again
            msg = "no part of this upload is here: it was never begun, or has been swept; begin anew"
            raise BadRequestError(msg)
        _check_parts(folder, parts, self._check)
        claimed = self._folder / f"{name}.{secrets.token_hex(8)}.joining"
        with self._dropped_on_failure(claimed):
            folder.rename(claimed)  # a part that comes now is too late
            whole = claimed / str(parts[0][0])
            _append(whole, [claimed / str(number) for number, _ in parts[1:]])
            self._publish(whole, name)
        _remove(claimed)

    @contextlib.contextmanager
    def _dropped_on_failure(self, path: Path) -> Iterator[None]:
        """Leave nothing at *path* if the block raises; a full disk becomes the answer that says so."""
        try:
            yield
        except OSError as error:
            _remove(path)
            if error.errno not in _FULL:
                log.exception("upload.failed path=%s", path)
                msg = "the file could not be written; falctl's log says why"
                raise RequestError(msg) from error
            msg = "the disk is full, so the file was not kept"
            raise StorageFullError(msg) from error
        except BaseException:
            _remove(path)
            raise


async def _gathered(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield *chunks* in pieces that are worth a trip to a thread."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= _WRITE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _write_all(fd: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        left = left[os.write(fd, left) :]


def _take_place(draft: Path, part: Path) -> tuple[int, str]:
    """Let *draft* be *part*; return the size of what it replaces, and its etag."""
    replaced = _size(part)
    draft.replace(part)
    return replaced, _etag(part)


def _etag(part: Path) -> str:
    """Return what tells this content of a part from another, without reading it."""
    status = part.stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _check_parts(folder: Path, parts: Sequence[tuple[int, str]], check: Callable[[int], None]) -> None:
    size = 0
    for at, (number, etag) in enumerate(parts):
        path = folder / str(number)
        if not path.exists() or _etag(path) != etag.strip('"') or (at and parts[at - 1][0] == number):
            msg = f"part {number} is not here as it was told (etag {etag}); send it again"
            raise BadRequestError(msg)
        size += path.stat().st_size
    check(size)


def _append(whole: Path, parts: Sequence[Path]) -> None:
    """Write *parts* behind *whole*, deleting each, so that the disk need not hold everything twice."""
    with whole.open("ab", buffering=0) as target:
        for part in parts:
            with part.open("rb", buffering=0) as source:
                shutil.copyfileobj(source, target, _WRITE_BYTES)
            part.unlink()


def _bytes_in(folder: Path) -> int:
    return sum(map(_size, _listed(folder)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _touched_ns(path: Path) -> int:
    """Return when *path*, or something in it, was last written."""
    stamps = [0]
    for one in (path, *_listed(path)):
        with contextlib.suppress(OSError):
            stamps.append(one.lstat().st_mtime_ns)
    return max(stamps)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
