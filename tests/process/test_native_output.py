"""What C libraries and children print in a runner, as `falctl up` shows it: also last words, also while nobody reads."""

from __future__ import annotations

import threading

import pytest

from tests.process.harness import REPOSITORY, Falctl
from tests.wait import until

pytestmark = pytest.mark.process

APP = f"{REPOSITORY / 'tests/host/printing_app.py'}::Alone"

DEAF = """
import ctypes, os
from falctl import App, endpoint

class Deaf(App):
    @endpoint("/")
    def deaf(self, body: dict[str, int]) -> int:
        '''Write with the GIL held, so that no thread of this process can read.'''
        libc = ctypes.PyDLL(None)
        line = b"~" * 99 + b"\\n"
        for _ in range(body["lines"]):
            libc.write(1, line, len(line))
        return body["lines"]
"""


def test_the_last_words_of_a_crash_are_shown() -> None:
    with Falctl(APP, args=("--runners", "1")) as f:
        assert f.post("/abort").status == 503
        f.wait_line(r"^\[cpu0\] last words of a C library$")


def test_lines_of_a_request_are_found_again_by_its_id() -> None:
    with Falctl(APP, args=("--runners", "1")) as f:
        request = f.post("/natively").headers["x-fal-request-id"]
        f.wait_line(r"^\[cpu0\] a C library$")
        told = f.run("logs", "--request", request)
        assert told.returncode == 0, told.stderr
        assert {line.split(maxsplit=2)[2] for line in told.stdout.splitlines()} == {
            "print",
            "a thread of its own",
            "a C library",
            "a child",
            "the last, no newline",
        }


def test_who_holds_the_gil_and_prints_more_than_a_pipe_takes_is_not_held_up() -> None:
    with Falctl("deaf.py::Deaf", args=("--runners", "1"), start=False) as f:
        (f.cwd / "deaf.py").write_text(DEAF)
        f.start()
        f.wait_ready()
        assert f.post("/", {"lines": 5000}).json == 5000
        # All of it may be more than the reader of these lines keeps up with; that it came this way is what counts.
        until(lambda: "~" * 99 in f.log, within_s=30.0, what="it is shown")


def test_a_detached_falctl_has_a_log_to_read_and_to_follow() -> None:
    with Falctl(APP, start=False) as f:
        nothing = f.run("logs")
        assert (nothing.returncode, "there is no log" in nothing.stderr) == (1, True)
        up = f.run("up", "-d", "--port", "0", "--runners", "1", APP)
        assert up.returncode == 0, up.stderr
        f.url = f.status()["fleet"]["url"]
        last = f.run("logs", "-n", "1").stdout
        assert len(last.splitlines()) == 1
        followed: list[str] = []
        following = threading.Thread(target=lambda: followed.append(f.run("logs", "-f").stdout))
        following.start()
        assert f.post("/natively").status == 200
        assert f.run("down").returncode == 0
        following.join(60.0)
        assert "[cpu0] a C library" in followed[0]
        assert "router.stopped" in followed[0]
        assert "in setup" in f.run("logs").stdout


def test_a_falctl_in_a_terminal_says_where_it_prints() -> None:
    with Falctl(args=("--runners", "1")) as f:
        told = f.run("logs")
        assert told.returncode == 1
        assert "prints to the terminal in which it was started" in told.stderr
        assert f.run("logs", "--json").returncode == 2
        unknown = f.run("logs", "--request", "nobody")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "nothing is remembered of request nobody" in unknown.stderr
        request = f.post("/").headers["x-fal-request-id"]
        assert "its app printed nothing for it" in f.run("logs", "--request", request).stderr
