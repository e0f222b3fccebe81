"""Images and files that an app stores: unguessable names, private, whole or not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as Pil

from falctl.errors import StorageFullError
from falctl.toolkit import File, Image
from falctl.toolkit.files import FileStore, use_store

URL = "http://127.0.0.1:8808/files"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    use_store(FileStore(tmp_path / "files", url=URL))
    yield tmp_path / "files"
    use_store(None)


def stored(folder: Path, file: File) -> Path:
    assert file.url.startswith(URL + "/")
    return folder / file.url.removeprefix(URL + "/")


@pytest.mark.parametrize(("kind", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_an_image_is_stored_as_asked_and_described(folder: Path, kind: str, suffix: str) -> None:
    image = Image.from_pil(Pil.new("RGBA", (8, 6), (255, 0, 0, 128)), format=kind)
    path = stored(folder, image)
    assert path.suffix == suffix
    assert (image.content_type, image.width, image.height) == (f"image/{kind}", 8, 6)
    assert image.file_size == path.stat().st_size
    assert image.file_name == path.name
    with Pil.open(path) as read:
        assert (read.format, read.size) == (kind.upper(), (8, 6))


def test_names_cannot_be_guessed(folder: Path) -> None:
    names = {stored(folder, File.from_bytes(b"x", "image/png")).stem for _ in range(50)}
    assert len(names) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", name) for name in names)


def test_a_file_is_private_and_nothing_else_is_left(folder: Path) -> None:
    path = stored(folder, File.from_bytes(b"x", "image/png"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(folder.iterdir()) == [path]


def test_the_folder_is_made_again_when_somebody_removed_it(folder: Path) -> None:
    File.from_bytes(b"x")
    shutil.rmtree(folder)
    assert stored(folder, File.from_bytes(b"y")).read_bytes() == b"y"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageFullError), (errno.EDQUOT, StorageFullError), (errno.EROFS, OSError)],
)
def test_a_write_that_fails_leaves_nothing_and_says_so_where_room_is_all_that_lacks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    File.from_bytes(b"x")
    before = list(folder.iterdir())

    def full(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(kind, match=os.strerror(number)):
        File.from_bytes(b"y")
    assert list(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("content_type", "file_name", "suffix"),
    [
        (None, "a.TXT", ".txt"),
        ("image/webp", None, ".webp"),
        (None, None, ".bin"),
        (None, "../../etc/passwd", ".bin"),
        (None, "a.sh;rm -rf", ".bin"),
        (None, "a.\u0e01", ".bin"),
        ("application/json", None, ".json"),
    ],
)
def test_only_a_plain_suffix_of_the_given_name_is_kept(
    folder: Path, content_type: str | None, file_name: str | None, suffix: str
) -> None:
    file = File.from_bytes(b"x", content_type, file_name)
    path = stored(folder, file)
    assert path.parent == folder
    assert path.suffix in {suffix, ""}
    assert os.sep not in path.name


def test_a_file_on_disk_is_copied(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    file = File.from_path(tmp_path / "a.json")
    assert (file.content_type, file.file_name, file.file_size) == ("application/json", "a.json", 2)
    assert stored(folder, file).read_text() == "{}"


def test_another_format_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="'gif' is none of png"):
        Image.from_pil(Pil.new("RGB", (1, 1)), format="gif")


def test_outside_a_host_the_error_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="falctl up"):
        Image.from_pil(Pil.new("RGB", (1, 1)))
