"""How a host starts, what stops its start, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from falctl.wire import Declared, Drain, Drained, Failed, LogLevel, Ready, Stage
from tests.host.conftest import PROBE, Gate
from tests.host.harness import START_S, STEP_S, Host
from tests.wait import until

pytestmark = pytest.mark.process

APP = """
import asyncio, os, threading, time
from pathlib import Path
from typing import Iterator
from pydantic import BaseModel
from starlette.websockets import WebSocket
from falctl import App, endpoint

HERE = Path(__file__).parent

class Base(App):
    @endpoint("/")
    def go(self) -> str:
        return "gone"

class Fine(Base):
    max_multiplexing = 3
    def setup(self):
        (HERE / "setup-thread").write_text(threading.current_thread().name)
        (HERE / "context").write_text(f"{self.runner.runner} {self.runner.device} {self.runner.models_dtype}")

class AsyncSetup(Base):
    async def setup(self):
        (HERE / "setup-thread").write_text(threading.current_thread().name)
    async def teardown(self):
        (HERE / "torn").touch()

class SetupRaises(Base):
    def setup(self):
        open("/no/such/weights")

class AsyncSetupRaises(Base):
    async def setup(self):
        raise LookupError("no weights")

class SetupExits(Base):
    def setup(self):
        raise SystemExit(9)

class SetupHangs(Base):
    def setup(self):
        (HERE / "hangs").touch()
        threading.Event().wait()

class Own(BaseException):
    pass

class SetupInterrupts(Base):
    def setup(self):
        raise KeyboardInterrupt

class AsyncSetupCancels(Base):
    async def setup(self):
        raise asyncio.CancelledError("by the app")

class InitRaisesOwn(Base):
    def __init__(self):
        raise Own("\\x1b[31mred\\nagain")

class HintsClose(Base):
    def provide_hints(self):
        raise GeneratorExit

class SetupTalks(Base):
    def setup(self):
        raise ValueError("x" * 300_000)

class InitRaises(Base):
    def __init__(self):
        raise KeyError("k")

class UnknownAnnotation(App):
    @endpoint("/")
    def go(self, x: "NoSuchType") -> str:
        return ""

class Unservable(App):
    @endpoint("/")
    def go(self) -> threading.Thread:
        return ""

class SyncSocket(App):
    @endpoint("/")
    def go(self, websocket: WebSocket): ...
class Generator(App):
    @endpoint("/")
    def go(self):
        yield ""

class TeardownRaises(Base):
    def teardown(self):
        raise ValueError("in teardown")

class TeardownHangs(Base):
    def teardown(self):
        threading.Event().wait()
"""


@pytest.fixture
def apps(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def host(apps: Path, name: str, **options: Any) -> Host:
    return Host(f"app.py::{name}", cwd=apps, **options)


def failure(apps: Path, name: str, **options: Any) -> tuple[Failed, str]:
    """Return how the start of *name* failed, and what was written; the process has ended with that code."""
    with host(apps, name, wait=False, **options) as failing:
        while not isinstance(message := failing.said.get(timeout=START_S), Failed):
            assert isinstance(message, Stage | Declared)
        assert failing.process.wait(timeout=STEP_S) == message.exit_code
        assert "\n" not in message.message
        return message, failing.output()


def test_the_stages_of_the_start_are_told_and_then_the_slots(apps: Path) -> None:
    with host(apps, "Fine", wait=False) as fine:
        told = []
        while not isinstance(message := fine.said.get(timeout=START_S), Ready):
            told.append(message)
        assert told == [Stage("importing app.py::Fine"), Declared(), Stage("setup")]
        assert message == Ready(3)
        assert (apps / "setup-thread").read_text().startswith("app_")
        assert (apps / "context").read_text() == "0 cpu auto"
        assert (fine.row.epoch, fine.row.slots, fine.row.hints) == (1, 3, None)


def test_an_async_setup_runs_on_the_loop_and_so_does_its_teardown(apps: Path) -> None:
    with host(apps, "AsyncSetup") as fine:
        assert (apps / "setup-thread").read_text() == "MainThread"
        assert fine.stop() == 0
        assert (apps / "torn").exists()


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("SetupRaises", "setup() raised FileNotFoundError: [Errno 2] No such file", 1),
        ("AsyncSetupRaises", "setup() raised LookupError: no weights", 1),
        ("SetupExits", "setup() raised SystemExit: 9", 1),
        ("SetupInterrupts", "setup() raised KeyboardInterrupt", 1),
        ("AsyncSetupCancels", "setup() raised CancelledError: by the app", 1),
        ("InitRaisesOwn", r"InitRaisesOwn() raised Own: \x1b[31mred again", 1),
        ("SetupTalks", "setup() raised ValueError: xxx", 1),
        ("InitRaises", "InitRaises() raised KeyError: 'k'", 1),
        ("Missing", "has no class 'Missing'; it has", 2),
        ("UnknownAnnotation", "UnknownAnnotation.go cannot be served: NameError: name 'NoSuchType'", 2),
        ("Unservable", "Unservable.go cannot be served: FastAPIError", 2),
        ("Generator", "Generator.go cannot be served: TypeError: it is a generator", 2),
        (
            "SyncSocket",
            "SyncSocket.go cannot be served: TypeError: it takes a WebSocket, so it must be async",
            2,
        ),
    ],
)
def test_a_start_that_fails_is_told_in_one_line(apps: Path, name: str, said: str, code: int) -> None:
    message, output = failure(apps, name)
    assert said in message.message
    assert message.exit_code == code
    assert len(message.message) <= 2000
    if code == 1:
        assert f"({apps}/app.py:" in message.message
        assert "Traceback" in output


def test_hints_that_raise_whatever_it_is_do_not_fail_the_start(apps: Path) -> None:
    with host(apps, "HintsClose") as fine:
        assert fine.output().count("provide_hints() raised GeneratorExit") == 1


def test_an_app_with_an_endless_name_is_refused_in_a_short_line(apps: Path) -> None:
    with host(apps, "x" * 300_000, wait=False) as failing:
        assert len(failing.heard(Stage).text) == 2000
        assert len(failing.heard(Failed).message) == 2000


def test_cards_that_torch_does_not_see_fail_the_start(apps: Path) -> None:
    message, _ = failure(apps, "Fine", cards=("GPU-11111111-aaaa-bbbb-cccc-000000000001",))
    assert "GPU-11111111" in message.message or "cannot use GPUs" in message.message
    assert "driver 570.1" in message.message
    assert message.exit_code == 1
    assert not (apps / "setup-thread").exists()


def test_a_host_that_is_told_to_stop_while_setup_hangs_ends(apps: Path) -> None:
    with host(apps, "SetupHangs", wait=False) as hanging:
        until((apps / "hangs").exists, within_s=START_S, what="setup hangs")
        hanging.send(Drain(5.0))
        hanging.heard(Drained)
        assert hanging.stop() == 0


def test_stop_tears_the_app_down_on_its_thread_and_ends_with_0(tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    with Host(f"{PROBE}::Probe", environ={"TEARDOWN": str(torn)}) as fine:
        assert fine.stop() == 0
        assert torn.read_text() == "app_0"
        assert not Path(fine.spec.socket).exists()


def test_a_teardown_that_raises_is_logged_and_the_end_is_still_0(apps: Path) -> None:
    with host(apps, "TeardownRaises") as fine:
        assert fine.stop() == 0
        assert "ValueError: in teardown" in fine.output()


def test_a_teardown_that_hangs_is_given_up(apps: Path) -> None:
    with host(apps, "TeardownHangs", config={"runners": {"teardown_timeout": 0.2}}) as fine:
        assert fine.stop() == 0


def test_stop_does_not_wait_for_an_endpoint_that_does_not_return(gate: Gate) -> None:
    with Host(f"{PROBE}::Probe", config={"runners": {"teardown_timeout": 0.2}}) as busy:
        busy.later("/held", gate.body)
        until(lambda: gate.has("entered"), within_s=STEP_S, what="the app was entered")
        assert busy.stop() == 0


def test_the_row_beats(probe: Host) -> None:
    first = probe.row.beat_at
    until(lambda: probe.row.beat_at > first, within_s=5.0, what="a beat")


def test_a_socket_file_that_was_wiped_is_made_again_and_what_runs_goes_on(probe: Host, gate: Gate) -> None:
    running = probe.later("/held", gate.body)
    until(lambda: gate.has("entered"), within_s=STEP_S, what="the app was entered")
    connection = probe.connect()
    connection.connect()
    path = Path(probe.spec.socket)
    shutil.rmtree(path.parent)
    until(path.exists, within_s=5.0, what="the socket is back")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert probe.ask("GET", "/health").status == 200
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    connection.close()
    gate.open()
    assert running.reply().status == 200


def test_a_stopped_host_goes_on_where_it_was(probe: Host, gate: Gate) -> None:
    running = probe.later("/held", gate.body)
    until(lambda: gate.has("entered"), within_s=STEP_S, what="the app was entered")
    os.kill(probe.process.pid, signal.SIGSTOP)
    gate.open()
    assert not running.done
    os.kill(probe.process.pid, signal.SIGCONT)
    assert running.reply().status == 200


def test_it_logs_from_the_level_on_that_a_reload_brings() -> None:
    with Host("runners.echo:Echo") as host:
        host.send(LogLevel("debug"))
        until(lambda: "log.level level=debug" in host.output(), within_s=STEP_S, what="a line of that level")
