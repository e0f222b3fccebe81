"""Digests that one process leaves for the next, and those that nobody need work out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from falctl.errors import ModelFilesError
from falctl.host.cache import content_key
from falctl.host.cache.content_key import FileDigests
from falctl.host.cache.digest_file import FILE_BYTES_MAX, FILE_NAME, DigestFile
from falctl.host.cache.headers import Stamp, WeightFile, read_weight_file
from tests.host.cache.folders import write_weights


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the paths of the files that were read to the end; the clock is far ahead of any file."""
    read: list[Path] = []
    really = content_key._hashed

    def counted(file: WeightFile) -> str:
        read.append(file.path)
        return really(file)

    monkeypatch.setattr(content_key, "_hashed", counted)
    monkeypatch.setattr(content_key, "wall_s", lambda: 1e11)
    return read


def weights(path: Path, value: float = 1.0) -> WeightFile:
    write_weights(path, a=value)
    return read_weight_file(path)


def sha256(file: WeightFile) -> str:
    return hashlib.sha256(file.path.read_bytes()).hexdigest()


def test_the_next_process_hashes_nothing_again(tmp_path: Path, hashed: list[Path]) -> None:
    files = [weights(tmp_path / f"{i}.safetensors", float(i)) for i in range(5)]
    first = FileDigests(DigestFile(tmp_path)).of_all(files)
    assert first == {file.path: sha256(file) for file in files}
    assert len(hashed) == 5
    second = FileDigests(DigestFile(tmp_path))
    assert second.of_all(files) == first
    assert len(hashed) == 5


def test_a_process_hears_of_what_another_has_hashed_since(tmp_path: Path, hashed: list[Path]) -> None:
    one, other = (FileDigests(DigestFile(tmp_path)) for _process in range(2))
    for name in ("a", "b"):
        file = weights(tmp_path / name)
        assert one.of(file) == other.of(file)
    assert len(hashed) == 2


def test_a_file_that_has_changed_is_hashed_again(tmp_path: Path, hashed: list[Path]) -> None:
    old = weights(tmp_path / "a")
    FileDigests(DigestFile(tmp_path)).of(old)
    new = weights(tmp_path / "a", 2.0)
    digests = FileDigests(DigestFile(tmp_path))
    assert digests.of(new) == sha256(new)
    assert len(hashed) == 2
    with pytest.raises(ModelFilesError):
        digests.of(old)


def test_lines_that_are_none_of_ours_are_skipped_and_cost_nobody_theirs(
    tmp_path: Path, hashed: list[Path]
) -> None:
    file = weights(tmp_path / "a")
    torn = f"{file.stamp.device} {file.stamp.inode} 7"
    (tmp_path / FILE_NAME).write_bytes(b"nonsense\n\xff\xfe\n" + torn.encode())
    FileDigests(DigestFile(tmp_path)).of(file)
    FileDigests(DigestFile(tmp_path)).of(file)
    assert len(hashed) == 1


def test_a_file_that_is_too_long_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"x" * (FILE_BYTES_MAX + 1))
    kept = DigestFile(tmp_path)
    assert kept.news() == {}
    stamp = Stamp(1, 2, 3, 4, 5)
    kept.add(stamp, "a" * 64)
    assert path.stat().st_size < 200
    assert kept.news() == {stamp: "a" * 64}
    assert kept.news() == {}


def test_a_folder_that_takes_no_file_costs_only_the_memory(tmp_path: Path, hashed: list[Path]) -> None:
    file = weights(tmp_path / "a")
    digests = FileDigests(DigestFile(tmp_path / "nowhere"))
    assert digests.of(file) == digests.of(file) == sha256(file)
    assert len(hashed) == 1
    (tmp_path / FILE_NAME).mkdir()
    assert FileDigests(DigestFile(tmp_path)).of(file) == sha256(file)


def test_the_hubs_name_of_a_large_file_is_its_digest(tmp_path: Path, hashed: list[Path]) -> None:
    file = weights(tmp_path / "a")
    blobs, shot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    shot.mkdir(parents=True)
    digest = sha256(file)
    file.path.rename(blobs / digest)
    (shot / "model.safetensors").symlink_to(blobs / digest)
    assert FileDigests().of(read_weight_file(shot / "model.safetensors")) == digest
    assert hashed == []
    (blobs / "etag").write_bytes((blobs / digest).read_bytes())
    assert FileDigests().of(read_weight_file(blobs / "etag")) == digest
    assert len(hashed) == 1
