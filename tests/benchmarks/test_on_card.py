"""`python -m benchmarks.on_card` runs every part that it has time for, whatever becomes of those before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import on_card
from benchmarks.on_card import Part, run_all


def run(tmp_path: Path, *parts: Part, within_s: float = 600.0) -> tuple[list[str], list[str], str]:
    told: list[str] = []
    with (tmp_path / "log").open("a") as log:
        verdicts = run_all(parts, log, within_s=within_s, tell=told.append)
    return [str(v).partition(" s  ")[2] for v in verdicts], told, (tmp_path / "log").read_text()


def python(name: str, code: str, limit_s: float = 300.0) -> Part:
    return Part(name, (sys.executable, "-c", code), limit_s)


@pytest.mark.process
def test_a_part_that_fails_or_hangs_does_not_keep_the_next_from_running(tmp_path: Path) -> None:
    verdicts, told, log = run(
        tmp_path,
        python("fails", "print('a' * 3); raise SystemExit(3)"),
        python("hangs", "import signal; print('waits', flush=True)\nwhile True: signal.pause()", 3.0),
        python("works", "print('\\n'.join(map(str, range(100))))"),
    )
    assert verdicts == ["FAILED with exit code 3", "ENDED after its limit of 3 s", "ok"]
    assert "aaa" in told
    assert "99" in told
    assert "50" not in told, "only the end is told"
    assert "\n50\n" in log


@pytest.mark.process
def test_a_part_that_ignores_ctrl_c_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_card, "END_S", 0.2)
    deaf = "import signal; signal.signal(2, signal.SIG_IGN); print('deaf', flush=True)\nwhile True: signal.pause()"
    verdicts, _, _ = run(tmp_path, python("deaf", deaf, 3.0))
    assert verdicts == ["ENDED after its limit of 3 s"]


def test_what_has_no_time_is_said_to_be_left_out(tmp_path: Path) -> None:
    verdicts, told, _ = run(tmp_path, python("late", "raise SystemExit(1)"), within_s=0.0)
    assert (verdicts, told) == (["not run: no time is left"], [])


def test_every_part_is_there_and_its_files_are_too() -> None:
    parts = on_card.parts_into(Path("/somewhere"))
    files = {word for part in parts for word in part.command if word.startswith("tests/")}
    here = {f"tests/gpu/{path.name}" for path in (on_card.REPOSITORY / "tests/gpu").glob("test_*.py")}
    assert files == here
    assert {Path(word).parent for part in parts for word in part.command if word.endswith(".json")} == {
        Path("/somewhere")
    }
