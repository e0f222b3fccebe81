"""What happens to falctl when nobody reads what it prints, or there is nothing to print to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from falctl.supervisor.unblocked import HELD_CHARS_MAX, Unblocked
from tests.process.harness import REPOSITORY, Falctl
from tests.wait import until

pytestmark = pytest.mark.process

CHATTY = """
from falctl import App, endpoint

class Chatty(App):
    @endpoint("/")
    def talk(self, body: dict[str, int]) -> dict[str, int]:
        print("x" * body["chars"], flush=True)
        return body
"""


def test_a_stream_that_nobody_reads_holds_nobody_up_and_says_what_it_dropped() -> None:
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as stream, os.fdopen(read_fd, "r") as reader:
        output = Unblocked(stream)
        for _ in range(40):
            assert output.write("y" * (HELD_CHARS_MAX // 16)) == HELD_CHARS_MAX // 16
        output.drain(0.05)
        while "dropped: nobody read them" not in (line := reader.readline()):
            assert line == "" or set(line) <= set("y.\n"), line[:80]
            if line == "":
                pytest.fail("nothing was said of what was dropped")
        output.write("the end\n")
        assert reader.readline() == "the end\n"


def test_requests_restarts_and_the_end_go_on_while_nobody_reads() -> None:
    with Falctl(start=False) as f:
        (f.cwd / "chatty.py").write_text(CHATTY)
        command = [
            sys.executable,
            "-P",
            "-m",
            "falctl",
            "up",
            "--port",
            "0",
            "--runners",
            "1",
            "chatty.py::Chatty",
        ]
        unread = subprocess.Popen(
            command, cwd=f.cwd, env={**f.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=subprocess.PIPE
        )
        try:
            until(lambda: f.run("status", "--json").returncode == 0, within_s=60.0, what="it is up")
            until(lambda: f.status()["runners"][0]["state"] == "ready", within_s=60.0, what="it is ready")
            f.url = f.status()["fleet"]["url"]
            for _ in range(20):
                assert f.post("/", {"chars": 100_000}).status == 200
            assert f.run("down").returncode == 0
            assert unread.wait(120) == 0
        finally:
            unread.kill()
            unread.communicate()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_detached_start_works_with_closed_streams(closed: tuple[int, ...]) -> None:
    with Falctl(start=False) as f:
        script = "import os, sys\n" + "".join(f"os.close({n})\n" for n in closed)
        script += f"os.execv({sys.executable!r}, [{sys.executable!r}, '-P', '-m', 'falctl', *sys.argv[1:]])\n"
        arguments = ["up", "-d", "--port", "0", "--runners", "1", "runners.echo:Echo"]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], cwd=f.cwd, env=f.environ, timeout=300, check=False
        )
        assert done.returncode == 0
        assert f.status()["runners"][0]["state"] == "ready"
        assert f.run("down").returncode == 0


def test_a_detached_start_refuses_a_configuration_that_cannot_be_read_twice(tmp_path: Path) -> None:
    fifo = tmp_path / "config"
    os.mkfifo(fifo)
    with Falctl(start=False) as f:
        told = f.run("up", "-d", "-c", str(fifo), "runners.echo:Echo")
        assert told.returncode == 2
        assert "must be a regular file" in told.stderr
