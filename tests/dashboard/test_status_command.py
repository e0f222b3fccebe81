"""`falctl status` once and as JSON: what it prints, its exit codes, and how little it loads."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from falctl.cli.status import SCHEMA
from falctl.dashboard import snapshot as facts
from falctl.errors import EXIT_NOT_RUNNING, EXIT_OK
from falctl.home import Home, Instance, Lock
from tests.dashboard import fleets
from tests.dashboard.conftest import ROOT, Writer
from tests.dashboard.schema import problems

pytestmark = pytest.mark.process

SCHEMA_FILE = ROOT / "docs" / "status-schema.json"


def status(home: Path, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.dashboard.status_main", *flags],
        cwd=ROOT,
        env={**os.environ, "FALCTL_HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_prints_once_into_a_pipe(writer: Writer) -> None:
    done = status(writer.home.root, COLUMNS="100")
    assert done.returncode == EXIT_OK
    assert done.stderr == ""
    assert "runner 4  backoff" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_a_plain_locale_gets_ascii(writer: Writer) -> None:
    done = status(writer.home.root, "--once", PYTHONIOENCODING="ascii")
    assert done.returncode == EXIT_OK
    assert "* sdxl-turbo ready" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize(("flag", "env"), [("--no-color", {}), ("", {"NO_COLOR": "1"})])
def test_no_colour_where_none_is_wanted(writer: Writer, flag: str, env: dict[str, str]) -> None:
    coloured = status(writer.home.root, "--once", FORCE_COLOR="1")
    assert "\x1b[32m" in coloured.stdout
    done = status(writer.home.root, "--once", flag, FORCE_COLOR="1", **env)
    assert "runner 4" in done.stdout
    assert "\x1b[3" not in done.stdout


@pytest.mark.parametrize("flags", [(), ("--once",), ("--json",)])
def test_it_ends_with_3_and_one_line_when_nothing_runs(short_home: Path, flags: tuple[str, ...]) -> None:
    done = status(short_home, *flags)
    assert done.returncode == EXIT_NOT_RUNNING
    assert done.stdout == ""
    assert done.stderr == "falctl: falctl is not running; start it with `falctl up`\n"


def test_a_board_that_a_dead_falctl_left_is_not_shown_as_the_new_ones(short_home: Path) -> None:
    lock = Lock(home := Home(short_home))
    lock.acquire()
    board = fleets.new_board(home.root, runners=5, gpus=4)
    fleets.put_busy(board, pid=os.getpid() + 1)
    lock.describe(Instance(os.getpid(), "http://127.0.0.1:1", detached=False))
    done = status(short_home, "--once")
    lock.release()
    board.close()
    assert done.returncode == EXIT_NOT_RUNNING
    assert done.stderr == "falctl: falctl is starting; try again in a moment\n"


def test_a_lock_without_a_board_is_a_falctl_that_starts(short_home: Path) -> None:
    lock = Lock(Home(short_home))
    lock.acquire()
    lock.describe(Instance(os.getpid(), "http://127.0.0.1:1", detached=False))
    done = status(short_home, "--once")
    lock.release()
    assert done.returncode == EXIT_NOT_RUNNING
    assert "is starting" in done.stderr


def test_a_deleted_board_is_read_through_the_process_that_holds_it(writer: Writer) -> None:
    writer.home.board.unlink()
    done = status(writer.home.root, "--once")
    assert done.returncode == EXIT_OK
    assert "runner 4" in done.stdout


def test_a_deleted_board_is_found_though_the_home_is_named_through_a_link(
    writer: Writer, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(writer.home.root)
    writer.home.board.unlink()
    assert status(link, "--once").returncode == EXIT_OK


@pytest.mark.parametrize("flag", ["--once", "--json"])
def test_a_reader_that_has_enough_is_no_failure(writer: Writer, flag: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.dashboard.status_main", flag],
        cwd=ROOT,
        env={**buffered, "FALCTL_HOME": str(writer.home.root)},
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_OK, b"")


# --- speed ---------------------------------------------------------------------------------------


def test_it_loads_nothing_heavy(writer: Writer) -> None:
    loaded = status(writer.home.root, "--once", "--list-modules").stderr.split()
    assert "rich.console" in loaded
    heavy = {"torch", "pydantic", "asyncio", "typer", "uvicorn", "aiohttp", "starlette", "numpy", "psutil"}
    assert heavy.isdisjoint(loaded)


def test_it_answers_within_a_third_of_a_second_of_cpu(writer: Writer) -> None:
    """CPU time, the least of three: the clock on the wall measures the neighbours too."""
    status(writer.home.root, "--once")
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert status(writer.home.root, "--once").returncode == EXIT_OK
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.3


# --- JSON ----------------------------------------------------------------------------------------


def documented() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text())
    return loaded


def test_json_is_one_object_that_follows_the_schema(writer: Writer) -> None:
    done = status(writer.home.root, "--json")
    assert done.returncode == EXIT_OK
    assert done.stdout.count("\n") == 1
    told = json.loads(done.stdout)
    assert told["schema"] == SCHEMA
    assert problems(told, documented()) == []
    assert told["runners"][0]["models"][0]["name"] == "flux.1-dev"
    assert told["fleet"]["pid"] == writer.process.pid


def test_json_follows_the_schema_when_nothing_is_written_yet(short_home: Path) -> None:
    lock = Lock(home := Home(short_home))
    lock.acquire()
    board = fleets.new_board(home.root, runners=2, gpus=2)
    lock.describe(Instance(os.getpid(), "http://127.0.0.1:1", detached=False))
    done = status(short_home, "--json")
    lock.release()
    board.close()
    told = json.loads(done.stdout)
    assert problems(told, documented()) == []
    assert told["fleet"] is None
    assert [runner["state"] for runner in told["runners"]] == ["unknown", "unknown"]


def test_the_schema_describes_every_field_and_no_other() -> None:
    schema = documented()
    kinds = {"fleet": facts.FleetFacts, "router": facts.RouterFacts, "card": facts.CardFacts,
             "runner": facts.RunnerFacts, "executing": facts.ExecutingFacts, "model": facts.ModelFacts,
             "queued": facts.QueuedFacts, "event": facts.EventFacts, "memory": facts.MemoryFacts}  # fmt: skip
    for name, kind in kinds.items():
        described = schema["$defs"][name]
        assert list(described["properties"]) == [field.name for field in fields(kind)], name
        assert described["required"] == list(described["properties"]), name
    assert list(schema["properties"]) == ["schema", *(field.name for field in fields(facts.FleetSnapshot))]
    assert set(schema["$defs"]) == set(kinds)


def test_the_checker_of_this_test_has_teeth(writer: Writer) -> None:
    told = json.loads(status(writer.home.root, "--json").stdout)
    breakings: tuple[Callable[[Any], object], ...] = (
        lambda d: d.pop("runners"),
        lambda d: d["runners"][0].update(state="happy"),
        lambda d: d["cards"][0].update(total_bytes="many"),
        lambda d: d["router"].update(hit_rate=1.5),
        lambda d: d.update(schema=2),
        lambda d: d["queue"].append({}),
        lambda d: d["runners"][0].update(hints=[1]),
    )
    for break_it in breakings:
        broken = json.loads(json.dumps(told))
        break_it(broken)
        assert problems(broken, documented())


def test_the_page_about_json_names_the_schema_and_every_part() -> None:
    page = (ROOT / "docs" / "status.md").read_text()
    assert "status-schema.json" in page
    for part in documented()["properties"]:
        assert f"`{part}`" in page, part
