"""The state directory: wiped while falctl runs, littered by a dead predecessor, and closed to everybody else."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from falctl.home import Lock
from tests.process.load import load
from tests.process.on_cpu import Falctl
from tests.process.test_kills import QUICK, SIMULATED, flow, hinted
from tests.wait import until

pytestmark = pytest.mark.process

ECHO: Final = "runners.echo:Echo"
PAINTER: Final = f"{Path(__file__).parent / 'apps' / 'small.py'}::Painter"
ONE: Final = ("--runners", "1")
HEALED_S: Final = 2.0


def wipe_contents(root: Path) -> None:
    for entry in root.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def wipe_whole(root: Path) -> None:
    shutil.rmtree(root)


def until_it_is_done(wipe: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return *wipe*, begun anew where what it has removed was back before it came to the end."""

    def wiped(root: Path) -> bool:
        try:
            wipe(root)
        except OSError:
            return False
        return True

    def repeated(root: Path) -> None:
        until(lambda: wiped(root), within_s=HEALED_S, what="it is wiped")

    return repeated


WIPES: Final = {"contents": until_it_is_done(wipe_contents), "whole": until_it_is_done(wipe_whole)}


def wait_healed(f: Falctl) -> None:
    until(
        lambda: f.home.lock.exists() and f.home.lock.read_bytes() and f.home.token.exists(),
        within_s=HEALED_S,
        what="lock and token are back",
    )


def paint(f: Falctl) -> tuple[int, int, int]:
    """Have an image stored, fetch it, and return its colour."""
    stored = f.post("/", {"rgb": [255, 128, 0]})
    assert stored.status == 200, stored.body
    fetched = f.get(stored.json["url"].removeprefix(f.url))
    assert fetched.status == 200
    pixel = Image.open(io.BytesIO(fetched.body)).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel[0], pixel[1], pixel[2]


@pytest.mark.parametrize("how", WIPES)
def test_a_wiped_directory_stops_no_request(how: str) -> None:
    with Falctl(SIMULATED, config=QUICK, args=("--runners", "2")) as f:
        with load(f, hinted) as running:
            flow(running, count=30)
            WIPES[how](f.home.root)
            flow(running, count=100)
            wait_healed(f)
        assert set(running.statuses) == {200}
        assert f.stop() == 0


@pytest.mark.parametrize("how", WIPES)
def test_after_a_wipe_images_status_restarts_and_down_work(how: str) -> None:
    with Falctl(PAINTER, config=QUICK, args=ONE) as f:
        f.board()  # opened while it has a name
        assert paint(f) == (255, 128, 0)
        WIPES[how](f.home.root)
        assert paint(f) == (255, 128, 0)
        wait_healed(f)
        status = f.run("status", "--once")
        assert status.returncode == 0, status.stderr
        assert "runner 0" in status.stdout

        second = f.run("up", "--port", "0", ECHO)
        assert second.returncode == 2
        assert f"already running (pid {f.process.pid}, {f.url})" in second.stderr

        os.kill(f.post("/pid").json, signal.SIGKILL)
        until(lambda: f.life(0).epoch == 2, within_s=20.0, what="epoch 2")
        f.wait_state(0, "ready")
        assert paint(f) == (255, 128, 0)

        down = f.run("down")
        assert (down.returncode, f.wait(within_s=1.0)) == (0, 0)


def test_a_router_that_dies_after_a_wipe_finds_the_runners_again() -> None:
    with Falctl(ECHO, config=QUICK, args=ONE) as f:
        before = f.pids()
        WIPES["contents"](f.home.root)
        sockets = f.home.sockets
        until(lambda: list(sockets.glob("*.sock")), within_s=3.0, what="the runner's socket is back")
        os.kill(before["router"], signal.SIGKILL)
        assert f.post("/", {"x": 1}).json == {"x": 1}
        assert f.pids()["runner0"] == before["runner0"]


def test_it_is_closed_to_everybody_else() -> None:
    with Falctl(PAINTER, args=ONE, start=False) as f:
        f.home.root.mkdir(mode=0o755)
        f.home.token.write_text("stale")
        f.home.token.chmod(0o644)
        f.start()
        f.wait_ready()
        paint(f)
        modes = {
            path.relative_to(f.home.root).parts[0]: stat.S_IMODE(path.stat().st_mode)
            for path in f.home.root.iterdir()
        }
        assert stat.S_IMODE(f.home.root.stat().st_mode) == 0o700
        folders = dict.fromkeys(("files", "uploads", "run", "jobs"), 0o700)
        files = dict.fromkeys(("lock", "board", "token", "token-secret", "webhook.key"), 0o600)
        assert modes == files | folders
        databases = [path for path in f.home.jobs.iterdir() if path.is_file()]
        assert databases
        for path in (*f.home.sockets.iterdir(), *f.home.files.iterdir(), *databases):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert f.home.token.read_text() != "stale"


def test_neither_its_token_nor_anything_dead_is_left_when_it_has_ended() -> None:
    with Falctl(PAINTER, args=ONE) as f:
        paint(f)
        assert f.stop() == 0
        lasting = {"token-secret", "webhook.key"}  # others hold what they have signed
        folders = {"files", "uploads", "run", "jobs"}
        assert {path.name for path in f.home.root.iterdir()} == {"lock"} | folders | lasting
        assert f.home.lock.read_bytes() == b""
        assert list(f.home.files.iterdir()), "images are kept for files.keep"


def dead_sockets(f: Falctl) -> None:
    f.home.sockets.mkdir(parents=True)
    for epoch in (1, 2):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(f.home.runner_socket(0, epoch)))


def nonsense(f: Falctl) -> None:
    f.home.root.mkdir()
    for path in (f.home.lock, f.home.board, f.home.token):
        path.write_bytes(os.urandom(5000))
    (f.home.root / "board.new").write_text("half a board")


@pytest.mark.parametrize("litter", [dead_sockets, nonsense])
def test_what_a_dead_predecessor_left_disturbs_nobody(litter: Callable[[Falctl], None]) -> None:
    with Falctl(ECHO, args=ONE, start=False) as f:
        litter(f)
        assert f.run("status", "--once").returncode == 3
        assert f.run("down").returncode == 3
        f.start()
        f.wait_ready()
        assert f.post("/", {"x": 1}).status == 200
        assert f.status()["fleet"]["pid"] == f.process.pid


def test_a_directory_that_another_has_taken_after_a_wipe_is_left_as_it_is() -> None:
    with Falctl(ECHO, args=ONE) as f:
        f.process.send_signal(signal.SIGSTOP)
        WIPES["contents"](f.home.root)
        with f.home.lock.open("w") as lock:  # a second falctl, quicker than the first could heal
            fcntl.flock(lock, fcntl.LOCK_EX)
            f.home.token.write_text("the second one's")
            f.process.send_signal(signal.SIGCONT)
            assert f.stop() == 0
            assert f.home.token.read_text() == "the second one's"


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has by now the number of a falctl that is dead."""
    with subprocess.Popen(["sleep", "100"]) as process:
        yield process
        process.kill()


def leave_lock(f: Falctl, pid: int) -> None:
    f.home.make_root()
    f.home.lock.write_text(json.dumps({"pid": pid, "url": "http://127.0.0.1:1", "detached": False}))


def test_the_lock_of_a_dead_predecessor_points_at_nobody(stranger: subprocess.Popen[bytes]) -> None:
    with Falctl(ECHO, args=ONE, start=False) as f:
        leave_lock(f, stranger.pid)
        assert f.run("status", "--once").returncode == 3
        down = f.run("down")
        assert (down.returncode, down.stderr) == (
            3,
            "falctl: falctl is not running; start it with `falctl up`\n",
        )
        f.start()
        f.wait_ready()
        assert f.run("down").returncode == 0
        assert stranger.poll() is None


def test_who_has_just_taken_the_lock_does_not_pass_for_its_predecessor(
    stranger: subprocess.Popen[bytes],
) -> None:
    with Falctl(ECHO, start=False) as f:
        leave_lock(f, stranger.pid)
        lock = Lock(f.home)
        lock.acquire()
        down = f.run("down")
        assert (down.returncode, down.stderr) == (3, "falctl: falctl is starting; try again in a moment\n")
        assert "already running (starting)" in f.run("up", "--port", "0", ECHO).stderr
        lock.release()
        assert stranger.poll() is None
