"""Keys of components: equal for equal modules in different folders, different for anything that differs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from falctl.errors import ModelFilesError
from falctl.host.cache.content_key import FileDigests, component_key
from falctl.host.cache.folder import read_folder
from falctl.host.cache.headers import read_weight_file
from tests.host.cache.folders import write_folder, write_json, write_weights

VERSIONS = {"diffusers": "0.42.1", "transformers": "5.23.0"}
YEAR_2001_NS = 1_000_000_000 * 10**9


def keys(root: Path, *, dtype: str = "float32", versions: Mapping[str, str] = VERSIONS) -> dict[str, str]:
    parts = read_folder(root).components
    digests = FileDigests().of_all(file for part in parts for file in part.weights)
    return {part.name: component_key(part, dtype=dtype, versions=versions, digests=digests) for part in parts}


def test_equal_text_encoders_of_two_folders_have_one_key_and_other_unets_two(tmp_path: Path) -> None:
    one = keys(write_folder(tmp_path / "a", seed=1.0, came_from="hub/a"))
    two = keys(write_folder(tmp_path / "b", seed=2.0, came_from="hub/b"))
    assert one["text_encoder"] == two["text_encoder"]
    assert one["scheduler"] == two["scheduler"]
    assert one["unet"] != two["unet"]
    assert len(set(one.values())) == 3


def test_each_thing_that_makes_another_module_makes_another_key(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    plain = keys(root)["text_encoder"]
    assert keys(root)["text_encoder"] == plain
    others = [keys(root, dtype="float16"), keys(root, versions={**VERSIONS, "diffusers": "0.43.0"})]
    write_json(root / "text_encoder" / "config.json", {"size": 5})
    others.append(keys(root))
    write_folder(tmp_path)
    write_json(
        root / "model_index.json", {"_class_name": "P", "text_encoder": ["transformers", "OtherModel"]}
    )
    others.append(keys(root))
    write_folder(tmp_path)
    write_weights(root / "text_encoder" / "model.safetensors", a=2.0, b=4.0)
    others.append(keys(root))
    assert len({plain, *(found["text_encoder"] for found in others)}) == 6


def _age(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock be an hour later: a test cannot set a file's ctime."""
    later = path.stat().st_ctime_ns / 1e9 + 3600
    monkeypatch.setattr("falctl.host.cache.content_key.wall_s", lambda: later)


def test_a_settled_file_is_hashed_once_and_a_fresh_one_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tmp_path / "f", w=1.0)
    file, digests = read_weight_file(tmp_path / "f"), FileDigests()
    hashed: list[str] = []
    whole = hashlib.file_digest

    def counted(opened: object, name: str) -> object:
        hashed.append(name)
        return whole(opened, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr("falctl.host.cache.content_key.wall_s", lambda: file.stamp.ctime_ns / 1e9 + 1.9)
    expected = hashlib.sha256((tmp_path / "f").read_bytes()).hexdigest()
    assert [digests.of(file), digests.of(file)] == [expected] * 2
    assert len(hashed) == 2
    _age(tmp_path / "f", monkeypatch)
    assert [digests.of(file), digests.of(file), digests.of(file)] == [expected] * 3
    assert len(hashed) == 3


@pytest.mark.parametrize("remembered", [True, False])
def test_a_file_that_changed_since_its_header_was_read_is_an_error_also_with_its_old_times(
    *, remembered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_weights(path, w=1.0)
    os.utime(path, ns=(YEAR_2001_NS, YEAR_2001_NS))
    _age(path, monkeypatch)
    file, digests = read_weight_file(path), FileDigests()
    if remembered:
        digests.of(file)
    write_weights(tmp_path / "g", w=2.0)
    os.utime(tmp_path / "g", ns=(YEAR_2001_NS, YEAR_2001_NS))
    (tmp_path / "g").replace(path)
    with pytest.raises(ModelFilesError, match="written or replaced"):
        digests.of(file)
    assert digests.of(read_weight_file(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(ModelFilesError, match="cannot be read"):
        digests.of(file)


def test_a_file_that_is_written_while_it_is_hashed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_weights(path, w=1.0)
    file, whole = read_weight_file(path), hashlib.file_digest

    def growing(opened: object, name: str) -> object:
        with path.open("ab") as writer:
            writer.write(b"more")
        return whole(opened, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", growing)
    with pytest.raises(ModelFilesError, match="while it was read"):
        FileDigests().of(file)
