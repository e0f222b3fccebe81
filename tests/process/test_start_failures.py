"""Everything that can be wrong with a start: one clear line, the right exit code, nothing left running."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.process.harness import Ended
from tests.process.on_cpu import Falctl, end_of
from tests.wait import until

pytestmark = pytest.mark.process

ECHO: Final = "runners.echo:Echo"
FAILING: Final = Path(__file__).parent / "apps" / "failing.py"
HURRY: Final = {"Hangs": '[runners]\nsetup_timeout = "6s"\n'}
"""Long enough for a busy machine to import the app; the others end by themselves."""
ONE: Final = ("--runners", "1")

BAD_APPS: Final = {
    "nowhere.py::X": r"APP 'nowhere\.py::X': there is no file /.*/nowhere\.py",
    "no_such_module:X": r"APP 'no_such_module:X': there is no module 'no_such_module' here \(/.*\) or in",
    "runners.echo": r"APP 'runners\.echo' names no class; write APP as module:Class or path\.py::Class",
    "runners.echo:Ech": r"APP 'runners\.echo:Ech': .*/runners/echo\.py has no class 'Ech'; it has Echo",
    f"{FAILING}::NotAnApp": r"APP '.*': NotAnApp is not a subclass of falctl\.App",
    f"{FAILING}::NoEndpoint": r"APP '.*' has no endpoint; mark a method with @falctl\.endpoint\(\"/\"\)",
    f"{FAILING}::OnReservedPath": r"APP '.*': endpoint mine has the path '/falctl/mine', which falctl keeps .*; choose",
}

BAD_CODE: Final = {
    "def broken(:": r"APP 'app\.py::X' cannot be imported: SyntaxError: .*app\.py:1\)",
    "import no_such_library": r"APP 'app\.py::X' cannot be imported: ModuleNotFoundError: .*no_such_library.*app\.py:1\)",
    "1 / 0": r"APP 'app\.py::X' cannot be imported: ZeroDivisionError: division by zero \(.*app\.py:1\)",
}

BAD_SETUPS: Final = {
    "Raises": r"cpu0: setup\(\) raised ValueError: no weights here \(.*failing\.py:\d+\)",
    "Exits": r"cpu0: exited with code 3 \(it was at: setup\)",
    "ExitsPolitely": r"cpu0: setup\(\) raised SystemExit: bye \(.*failing\.py:\d+\)",
    "Hangs": r"cpu0: not ready within runners\.setup_timeout, 6 s \(it was at: setup\)",
}

BAD_SETTINGS: Final = {
    "FALCTL_SERVER_PROT=1": r"unknown environment variable FALCTL_SERVER_PROT; did you mean FALCTL_SERVER_PORT\?",
    "FALCTL_SERVER_HOST=0.0.0.0": r'server\.host = "0\.0\.0\.0" \(FALCTL_SERVER_HOST\) .* without API keys; .*`falctl key`',
    "FALCTL_RUNNERS_GPUS=7": r"runners\.gpus: no GPU 7; visible here: none",
}


def said(ended: Ended, pattern: str, *, code: int) -> None:
    """Assert that the last line is *pattern* behind our name, that no line repeats it, and the exit code."""
    assert re.fullmatch(f"falctl: (cpu[01]: )?{pattern}.*", ended.lines[-1]), ended.lines[-1]
    assert ended.code == code
    verdicts = [line for line in ended.lines if line.startswith("falctl: ") and "starting" not in line]
    assert verdicts == ended.lines[-1:]


@pytest.mark.parametrize("app", BAD_APPS)
def test_an_app_that_is_none_is_a_usage_error(app: str) -> None:
    ended = end_of(app, args=ONE)
    said(ended, BAD_APPS[app], code=2)
    assert not any("Traceback" in line for line in ended.lines)


@pytest.mark.parametrize("code", BAD_CODE)
def test_an_app_that_cannot_be_imported_is_a_usage_error_that_names_the_line(code: str) -> None:
    with Falctl("app.py::X", args=ONE, start=False) as f:
        (f.cwd / "app.py").write_text(code)
        f.start()
        said(Ended(f.wait(), f.lines), BAD_CODE[code], code=2)


@pytest.mark.parametrize("name", BAD_SETUPS)
def test_a_setup_that_does_not_return_well_is_a_failure_at_run_time(name: str) -> None:
    ended = end_of(f"{FAILING}::{name}", args=ONE, config=HURRY.get(name, ""))
    said(ended, BAD_SETUPS[name], code=1)
    assert sum("Traceback" in line for line in ended.lines) <= 1, "the author's, once"


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_wrong_setting_is_the_only_line(setting: str) -> None:
    name, _, value = setting.partition("=")
    ended = end_of(env={name: value})
    said(ended, BAD_SETTINGS[setting], code=2)
    assert len(ended.lines) == 1


def test_a_wrong_key_in_the_file_is_the_only_line() -> None:
    ended = end_of(config='[routing]\npolcy = "fal"\n')
    said(ended, r"unknown key 'polcy' in \[routing\] of test\.toml; did you mean 'policy'\?", code=2)
    assert len(ended.lines) == 1


def test_a_file_that_is_not_there_is_named() -> None:
    said(end_of(args=("-c", "/nowhere.toml")), r"there is no configuration file /nowhere\.toml; .*", code=2)


def test_a_port_in_use_names_who_holds_it_and_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ended = end_of(args=("--port", str(port)))
        line = rf"server\.port: {port} is in use by \S+ \(pid \d+\); .*falctl up --port {port + 1}"
        said(ended, line, code=2)


def test_a_second_up_names_the_first() -> None:
    with Falctl(ECHO, args=ONE) as f:
        second = f.run("up", "--port", "0", ECHO)
        expected = (
            f"falctl: falctl is already running (pid {f.process.pid}, {f.url}); stop it with `falctl down`, "
            "or set FALCTL_HOME for a second one\n"
        )
        assert (second.returncode, second.stderr) == (2, expected)
        detached = f.run("up", "-d", "--port", "0", ECHO)
        assert (detached.returncode, detached.stderr) == (2, expected)
        assert f.post("/", {"x": 1}).status == 200
        assert f.run("status", "--once").returncode == 0, "the second has not touched the first one's files"


def test_a_second_up_while_the_first_starts_says_so() -> None:
    with Falctl(f"{FAILING}::Hangs", args=ONE, start=False) as f:
        f.start()
        f.wait_line("cpu0: setup")
        second = f.run("up", "--port", "0", ECHO)
        assert second.returncode == 2
        assert f"falctl is already running (pid {f.process.pid}, " in second.stderr


@pytest.mark.parametrize("how", [(), ("-d",)])
def test_a_state_directory_that_cannot_be_is_named(how: tuple[str, ...]) -> None:
    with Falctl(start=False) as f:
        (f.root / "file").touch()
        homes = {
            "/proc/falctl": r"cannot use /proc/falctl for falctl's state \(.*\); set FALCTL_HOME to a directory you own",
            str(f.root / "file"): r"cannot use .*/file for falctl's state \(.*\); set FALCTL_HOME to .*",
            str(
                f.root / ("long" * 25)
            ): r"FALCTL_HOME=.* is too long for Unix sockets \(100 bytes\); choose a shorter one",
        }
        for home, line in homes.items():
            f.environ["FALCTL_HOME"] = home
            up = f.run("up", *how, "--port", "0", ECHO)
            said(Ended(up.returncode, up.stderr.splitlines()), line, code=2)


@pytest.mark.parametrize("how", [(), ("-d",)])
def test_a_deleted_working_directory_is_named(how: tuple[str, ...]) -> None:
    with Falctl(start=False) as f:
        gone = f.root / "gone"
        gone.mkdir()
        command = [*f._command("up", *how, "--port", "0", ECHO)]
        shell = ["sh", "-c", 'cd "$1" && rmdir "$1" && shift && exec "$@"', "sh", str(gone), *command]
        up = subprocess.run(shell, env=f.environ, capture_output=True, text=True, timeout=300, check=False)
        said(
            Ended(up.returncode, up.stderr.splitlines()),
            "the current directory has been deleted; cd to one that exists",
            code=2,
        )


def test_a_detached_start_tells_the_same_with_the_same_code() -> None:
    failures = {
        **{app: (line, 2) for app, line in list(BAD_APPS.items())[:2]},
        **{f"{FAILING}::{name}": (BAD_SETUPS[name], 1) for name in ("Raises", "Hangs")},
    }
    for app, (line, code) in failures.items():
        with Falctl(app, args=("-d", *ONE), config=HURRY.get(app.rpartition("::")[2], ""), start=False) as f:
            f.start()
            said(Ended(f.wait(), f.lines), line, code=code)
            until(lambda: not f.family(), within_s=2.0, what="nothing is left when it returns")


def test_a_detached_start_whose_port_is_in_use_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ended = end_of(args=("-d", "--port", str(port)))
        said(ended, rf"server\.port: {port} is in use by .*", code=2)


def test_after_a_failed_start_the_next_one_works() -> None:
    with Falctl(ECHO, args=ONE, start=False) as f:
        assert f.run("up", "--port", "0", "--runners", "1", f"{FAILING}::Raises").returncode == 1
        assert not f.home.lock.read_bytes(), "nobody is said to run"
        assert f.run("status", "--once").returncode == 3
        f.start()
        f.wait_ready()
        assert json.loads(f.home.lock.read_text())["pid"] == f.process.pid
