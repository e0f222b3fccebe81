"""`falctl replay` as a process: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from falctl.replay.report import Bounds, Figures
from tests.replay.traces import FIVE, drawn
from tests.replay.written import write_trace
from tests.wait import until

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
ONE = ("--runners", "1", "--slots", "1")

POLICY = '''
class Newest:
    """The youngest request goes first."""

    def choose(self, state, *, now):
        from falctl.core.policies import Execute

        free = state.fleet.free()
        waiting = list(state.queue)
        return Execute(waiting[-1].request, free[0].runner, "newest first") if free and waiting else None


class Blind:
    pass


class Angry:
    def __init__(self):
        raise RuntimeError("no")


class Idle:
    def choose(self, state, *, now):
        return None


number = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "five.csv").write_text(FIVE)
    (tmp_path / "mine.py").write_text(POLICY)
    (tmp_path / "broken.py").write_text("import nothing\n")
    write_trace(tmp_path / "drawn.csv.gz", drawn(2, 300, gap_s=8.0))
    return tmp_path


def falctl(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("FORCE_COLOR", "TTY_", "COLUMNS"))
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", "falctl", "replay", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def told(folder: Path, *arguments: str, **environ: str) -> dict[str, Any]:
    done = falctl(folder, *arguments, "--json", **environ)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "no progress bar where nobody looks"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(folder: Path, *arguments: str) -> str:
    done = falctl(folder, *arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.startswith("falctl: ")
    assert done.stderr.count("\n") == 1, "one line"
    return done.stderr.removeprefix("falctl: ").strip()


# --- what it prints --------------------------------------------------------------------------------


def test_json_is_one_object_with_the_names_of_the_figures(folder: Path) -> None:
    found = told(folder, "five.csv", "--policy", "fal,auto", *ONE)
    assert list(found) == ["trace", "setting", "bounds", "policies"]
    assert found["trace"] == "five.csv"
    assert found["setting"] == {
        "runners": 1,
        "slots": 1,
        "vram_bytes": None,
        "load_factor": 1.0,
        "overlap": True,
        "ram": 0.0,
        "ram_load": 0.1,
        "seed": 0,
    }
    assert list(found["bounds"]) == [field.name for field in fields(Bounds)]
    assert list(found["policies"]) == ["fal", "auto"]
    for figures in found["policies"].values():
        assert list(figures) == [field.name for field in fields(Figures)]
    assert found["policies"]["fal"]["mean_s"] == 6
    assert found["policies"]["fal"]["loads_per_1k"] == found["bounds"]["min_loads_per_1k"] == 600


def test_what_host_memory_holds_is_loaded_sooner_and_counted(folder: Path) -> None:
    slow = told(folder, "drawn.csv.gz", "--policy", "auto", *ONE)["policies"]["auto"]
    assert slow["ram_loads_per_1k"] == 0
    found = told(folder, "drawn.csv.gz", "--policy", "auto", *ONE, "--ram", "12", "--ram-load", "0.2")
    assert (found["setting"]["ram"], found["setting"]["ram_load"]) == (12, 0.2)
    fast = found["policies"]["auto"]
    assert fast["ram_loads_per_1k"] > 0
    assert fast["mean_s"] < slow["mean_s"]
    done = falctl(
        folder, "drawn.csv.gz", "--policy", "fal", "--runners", "1", "--vram", "60B", "--ram", "200B"
    )
    assert "RAM for 200B" in " ".join(done.stdout.split())
    assert "ram_loads_per_1k" in done.stdout
    assert "ram_loads_per_1k" not in falctl(folder, "five.csv", "--policy", "fal", *ONE).stdout


def test_a_pipe_gets_a_plain_table_with_every_figure_and_the_bounds(folder: Path) -> None:
    done = falctl(folder, "five.csv", "--policy", "fal,random", *ONE)
    assert done.returncode == 0
    assert not done.stderr
    assert "\x1b" not in done.stdout
    rows = {
        cells[1].strip(): cells[2:] for line in done.stdout.splitlines() if len(cells := line.split("│")) > 2
    }
    assert list(rows) == [field.name for field in fields(Figures) if field.name != "ram_loads_per_1k"]
    assert [cell.strip() for cell in rows["max_s"][:3]] == ["10.00", "10.00", "3.00"]
    assert "five.csv: 1 runners x 1 slots" in done.stdout


def test_a_terminal_sees_a_progress_bar_and_it_is_gone_at_the_end(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "falctl", "replay", "drawn.csv.gz", "--policy", "auto", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(
        [*command, "--runners", "2", "--slots", "3"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(output)["policies"]["auto"]["requests"] == 300
    seen = bytearray()
    until(lambda: _drained(ours, seen), within_s=10, what="the terminal is closed")
    assert b"auto" in seen
    assert "━".encode() in seen, "a bar"
    assert seen.endswith(b"\x1b[1A\x1b[2K"), "erased"


def _drained(terminal: int, seen: bytearray) -> bool:
    try:
        seen += os.read(terminal, 65536)
    except OSError:  # how a pseudoterminal says that the other end has closed
        os.close(terminal)
        return True
    return False


# --- options ---------------------------------------------------------------------------------------


def test_the_options_reach_the_fleet(folder: Path) -> None:
    args = ("drawn.csv.gz", "--policy", "auto", "--runners", "2")
    plain = told(folder, *args, "--slots", "3")
    serial = told(folder, *args, "--slots", "3", "--no-overlap")
    quick = told(folder, *args, "--slots", "3", "--load-factor", "0.1")
    roomy = told(folder, *args, "--vram", "1000B")
    assert (serial["setting"]["overlap"], quick["setting"]["load_factor"]) == (False, 0.1)
    assert (roomy["setting"]["slots"], roomy["setting"]["vram_bytes"]) == (None, 1000)
    mean_s = [x["policies"]["auto"]["mean_s"] for x in (plain, serial, quick)]
    assert mean_s[2] < mean_s[0] < mean_s[1]
    assert roomy["bounds"]["min_loads_per_1k"] < plain["bounds"]["min_loads_per_1k"]


def test_bare_arrivals_take_costs_from_the_command_line(folder: Path) -> None:
    (folder / "bare.jsonl").write_text('{"t": 0, "model": "m"}\n{"t": 9, "model": "m"}\n')
    found = told(folder, "bare.jsonl", "--policy", "fal", *ONE, "--exec-s", "0.5", "--load-s", "4")
    assert found["policies"]["fal"]["max_s"] == 4.5
    assert found["policies"]["fal"]["p50_s"] == 4.5
    assert found["policies"]["fal"]["mean_s"] == 2.5
    assert "row 1: exec_s: is missing; give --exec-s" in refused(
        folder, "bare.jsonl", "--policy", "fal", *ONE
    )


def test_one_command_is_one_result_and_the_seed_is_for_random_alone(folder: Path) -> None:
    args = (
        "drawn.csv.gz",
        "--policy",
        "auto,affinity,fal,least-loaded,random",
        "--runners",
        "3",
        "--slots",
        "2",
    )
    first = told(folder, *args, PYTHONHASHSEED="1")
    assert told(folder, *args, PYTHONHASHSEED="2") == first, "no order of a set decides"
    other = told(folder, *args, "--seed", "5")
    assert other["policies"]["random"] != first["policies"]["random"]
    del other["policies"]["random"], first["policies"]["random"]
    assert other["policies"] == first["policies"]


def test_a_policy_of_ones_own_is_named_by_module_and_class(folder: Path) -> None:
    found = told(folder, "five.csv", "--policy", "mine:Newest,fal", *ONE)
    assert found["policies"]["mine:Newest"]["requests"] == 5
    assert found["policies"]["mine:Newest"] != found["policies"]["fal"]


# --- what it refuses -------------------------------------------------------------------------------

LOOKED = "modules are looked for in this Python's packages, then in HERE: write"
OR = "there, or install it"


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ("atuo", "unknown policy 'atuo'; did you mean 'auto'?"),
        ("zzz", "unknown policy 'zzz'; there are auto, affinity, fal, least-loaded, random and module:Class"),
        (",", "--policy names none; write --policy auto,fal"),
        ("mine:", "policy 'mine:': it names no class; write module:Class"),
        (":Newest", "policy ':Newest': it names no class; write module:Class"),
        ("mine:Nobody", "policy 'mine:Nobody': mine has no class Nobody"),
        ("mine:number", "policy 'mine:number': mine has no class number"),
        ("mine:Blind", "policy 'mine:Blind': Blind has no method choose(state, *, now)"),
        ("mine:Angry", "policy 'mine:Angry': RuntimeError: no"),
        ("nowhere:X", f"policy 'nowhere:X': there is no module 'nowhere'; {LOOKED} nowhere.py {OR}"),
        ("broken:X", f"policy 'broken:X': there is no module 'nothing'; {LOOKED} nothing.py {OR}"),
    ],
)
def test_a_policy_that_is_none_is_refused(folder: Path, policy: str, line: str) -> None:
    assert refused(folder, "five.csv", "--policy", policy, *ONE).replace(str(folder), "HERE") == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "give one of --slots K and --vram SIZE"),
        (("--slots", "1", "--vram", "1GiB"), "give one of --slots K and --vram SIZE"),
        (("--vram", "much"), "--vram much: not a size"),
        (("--vram", "0GiB"), "--vram 0GiB: write more than nothing"),
        (("--vram", "19B"), "trace five.csv: model 'b' needs 20 bytes, more than --vram"),
        (("--slots", "1", "--load-factor", "0"), "--load-factor 0: write a number above 0"),
        (("--slots", "1", "--load-factor", "nan"), "--load-factor nan: write a number above 0"),
        (("--slots", "1", "--exec-s", "-1"), "--exec-s -1: write seconds, from 0 up"),
        (("--slots", "1", "--load-s", "inf"), "--load-s inf: write seconds, from 0 up"),
        (("--vram", "1GiB", "--ram", "12"), "--ram 12: not a size"),
        (
            ("--slots", "1", "--ram", "1GiB"),
            "--ram 1GiB: beside --slots, which counts models, write how many",
        ),
        (
            ("--slots", "1", "--ram-load", "2"),
            "--ram-load 2: write the share of a load from disk, from 0 to 1",
        ),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    folder: Path, arguments: tuple[str, ...], line: str
) -> None:
    assert refused(folder, "five.csv", "--policy", "fal", "--runners", "1", *arguments).startswith(line)


def test_a_trace_that_is_wrong_is_refused_with_its_row_and_field(folder: Path) -> None:
    (folder / "wrong.csv").write_text(FIVE.replace("30,b,1", "30,b,one"))
    line = refused(folder, "wrong.csv", "--policy", "fal", *ONE)
    assert line == "trace wrong.csv, row 4: exec_s: 'one' is not a number from 0 up"
    assert refused(folder, "none.csv", "--policy", "fal", *ONE).startswith("trace none.csv: cannot be read")
    (folder / "sizeless.csv").write_text("t_s,hint,exec_s,load_s\n0,a,1,1\n")
    line = refused(folder, "sizeless.csv", "--policy", "fal", "--runners", "1", "--vram", "1GiB")
    assert line == "trace sizeless.csv: model 'a' has no size_bytes, which --vram needs"


def test_a_policy_that_serves_nobody_fails_with_one_line(folder: Path) -> None:
    done = falctl(folder, "five.csv", "--policy", "mine:Idle", *ONE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "falctl: the policy lets 5 of 5 requests wait for ever\n"


def test_a_missing_option_is_a_usage_error(folder: Path) -> None:
    assert falctl(folder, "five.csv", "--policy", "fal", "--slots", "1").returncode == 2
    assert falctl(folder, "five.csv", "--runners", "0", "--policy", "fal", "--slots", "1").returncode == 2
