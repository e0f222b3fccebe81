"""peaks.json: whole or not there, shared by the runners of a machine, and ignored when it is not ours."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from falctl.core.peaks import Kind, LearntPeaks
from falctl.host.cache import peak_file
from falctl.host.cache.peak_file import PeakFile

KIND = Kind("FluxPipeline", 1024, 1024, 1, "bfloat16")
OTHER = Kind("FluxPipeline", 512, 512, 1, "bfloat16")


def runner(folder: Path) -> tuple[LearntPeaks, PeakFile]:
    peaks = LearntPeaks()
    file = PeakFile(folder, peaks)
    file.recall()
    return peaks, file


def test_what_one_runner_learnt_the_next_knows(tmp_path: Path) -> None:
    peaks, file = runner(tmp_path)
    peaks.seen(KIND, 10)
    file.keep()
    assert runner(tmp_path)[0].expected(KIND) == 11
    assert [path.name for path in tmp_path.iterdir()] == ["peaks.json"]
    assert (tmp_path / "peaks.json").stat().st_mode & 0o777 == 0o600


def test_runners_that_write_in_turn_keep_each_others_maxima(tmp_path: Path) -> None:
    (one, file), (other, other_file) = runner(tmp_path), runner(tmp_path)
    one.seen(KIND, 100)
    file.keep()
    other.seen(KIND, 50)
    other.seen(OTHER, 7)
    other_file.keep()
    assert other.expected(KIND) == 110, "taken over as it wrote"
    found = runner(tmp_path)[0]
    assert (found.expected(KIND), found.expected(OTHER)) == (110, 7)


def test_runners_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    runners = [runner(tmp_path) for _runner in range(8)]
    for width, (peaks, _file) in enumerate(runners):
        peaks.seen(Kind("Flux", width, 8, 1, "float16"), 5)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: one[1].keep(), runners))
    assert len(runner(tmp_path)[0]) == 8


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    peaks, file = runner(tmp_path)
    peaks.seen(KIND, 10)
    file.keep()
    before = (tmp_path / "peaks.json").stat().st_ino
    file.keep()
    assert (tmp_path / "peaks.json").stat().st_ino == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 200_000,
        b"\xff",
        json.dumps({"version": 1, "peaks": [["Flux", 8, 8, 1, "float16", False, 5], ["Flux"]]}).encode(),
        b" " * (peak_file.FILE_BYTES_MAX + 1),
    ],
)
def test_a_spoilt_file_is_ignored_as_a_whole_and_replaced(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "peaks.json").write_bytes(content)
    peaks, file = runner(tmp_path)
    assert len(peaks) == 0
    assert "peaks.ignored" in caplog.text
    peaks.seen(KIND, 10)
    file.keep()
    assert runner(tmp_path)[0].expected(KIND) == 11


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    peaks, file = runner(folder)
    peaks.seen(KIND, 10)
    with caplog.at_level(logging.WARNING):
        file.keep()
        file.keep()
    assert caplog.text.count("peaks.not_kept") == 1
    folder.mkdir()
    file.keep()
    folder.rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING):
        file.keep()
    assert caplog.text.count("peaks.not_kept") == 2, "said again after it had worked"
