"""Where ``data_mounts`` of a fal.App lie on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from falctl.host.fal.storage import make_data_folders, outside_data


@pytest.mark.parametrize(
    ("mount", "made"),
    [
        ("/data", "."),
        ("/data/models", "models"),
        ("models/mine", "models/mine"),
        ("/data/a/../b", "b"),
        ("/etc", None),
        ("../x", None),
        ("/data/../x", None),
        ("/database", None),
    ],
)
def test_only_folders_of_data_are_made(mount: str, made: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    make_data_folders([mount], folder)
    assert outside_data([mount], folder) == (() if made else (mount,))
    if made is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert (folder / made).is_dir()
