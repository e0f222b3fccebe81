"""`falctl exec` as a person uses it: an unmodified script, whose end and signals are its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.apikeys import hash_key
from tests.compat.clients import OWNER, Calling, calling
from tests.process.harness import Falctl

pytestmark = pytest.mark.process

STEP_S = 60.0


@pytest.fixture(scope="module")
def c() -> Iterator[Calling]:
    with calling() as one:
        yield one


def test_an_unmodified_script_calls_the_falctl_that_runs(c: Calling) -> None:
    script = "import fal_client; print(fal_client.submit('%s', {'prompt': 'seven'}).get()['prompt'])"
    done = c.run_script(script % c.app)
    assert (done.returncode, done.stdout) == (0, "seven\n"), done.stderr


def test_a_real_key_stays_out_of_it_and_a_proxy_is_passed_by(
    c: Calling, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FAL_KEY": "a:b", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "a.b"}.items():
        monkeypatch.setitem(c.falctl.environ, name, value)
    script = (
        f"import os, fal_client; fal_client.submit('{c.app}', {{'prompt': 'x'}}); "
        "print(os.environ['FAL_KEY'], os.environ['NO_PROXY'])"
    )
    done = c.run_script(script)
    assert done.stdout == "local:local a.b,127.0.0.1,localhost,::1\n", done.stderr


def test_the_users_own_sitecustomize_runs_too(
    c: Calling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / "sitecustomize.py"
    theirs.write_text("x = 'theirs'\n")
    paths = os.pathsep.join([str(tmp_path), c.falctl.environ["PYTHONPATH"]])
    monkeypatch.setitem(c.falctl.environ, "PYTHONPATH", paths)
    script = "import sitecustomize, fal_client.client as f; print(sitecustomize.x, sitecustomize.__file__, f.REST_URL)"
    assert c.run_script(script).stdout == f"theirs {theirs} {c.falctl.url}/fal/rest\n"
    theirs.write_text("raise OSError('theirs')")
    done = c.run_script("import fal_client.client as f; print(f.REST_URL)")
    assert done.stdout == f"{c.falctl.url}/fal/rest\n"
    assert "OSError: theirs" in done.stderr


def test_a_client_whose_names_changed_is_refused_rather_than_let_out(c: Calling, tmp_path: Path) -> None:
    package = tmp_path / "fal_client"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "client.py").write_text(
        "RUN_URL_FORMAT = QUEUE_URL_FORMAT = REST_URL = CDN_URL = 'https://fal.run/'"
    )
    done = c.run_script(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fal_client.client")
    assert done.returncode == 1
    assert "ImportError: falctl cannot point this version of fal_client at http://" in done.stderr
    assert "has no REALTIME_URL_FORMAT" in done.stderr


def test_the_program_takes_the_place_of_falctl_and_its_signals_and_exit_code_are_its_own(c: Calling) -> None:
    script = "import os, signal; print(os.getpid(), signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "falctl", "exec", "--", sys.executable, "-c", script],
        env=c.falctl.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid} True\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(STEP_S) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    assert c.falctl.run("exec", "sh", "-c", "exit 7").returncode == 7


def test_what_is_ignored_by_python_alone_is_not_ignored_by_the_program(c: Calling) -> None:
    done = c.falctl.run("exec", "--", "grep", "SigIgn", "/proc/self/status")
    assert int(done.stdout.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_what_is_no_program_is_said_with_the_codes_of_a_shell(c: Calling) -> None:
    assert c.falctl.run("exec", "no-such-program").returncode == 127
    assert c.falctl.run("exec", "/").returncode == 126


def test_where_none_runs_it_says_so() -> None:
    with Falctl(start=False) as f:
        done = f.run("exec", "--", "true")
        assert (done.returncode, done.stderr) == (
            3,
            "falctl: falctl is not running; start it with `falctl up`\n",
        )


def test_where_keys_are_asked_for_the_users_own_is_kept() -> None:
    key = "falctl_abc"
    with calling(config=f'[server]\napi_keys = ["{hash_key(key)}"]\n', key=key) as c:
        script = f"import fal_client; print(fal_client.submit('{OWNER}/client-app', {{'prompt': 'x'}}).get()['prompt'])"
        refused = c.run_script(script)
        assert refused.returncode == 2
        assert "this falctl asks for an API key: set FALCTL_KEY=<key> or FAL_KEY=<key>" in refused.stderr
        for name in ("FAL_KEY", "FALCTL_KEY"):
            c.falctl.environ[name] = key
            assert c.run_script(script).stdout == "x\n"
            del c.falctl.environ[name]


def test_an_app_that_calls_another_by_fals_client_finds_it_here() -> None:
    with calling(args=("--runners", "2"), env={"FAL_KEY": "real:secret"}) as c:
        answer = c.fal.run(c.app, {"prompt": "x"}, path="/calls-another")
        assert answer == {"answers": ["x", "x"], "key": None}
