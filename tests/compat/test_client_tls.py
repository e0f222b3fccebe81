"""`falctl up --tls` and `falctl env`: fal's Python client by its own variables, and who speaks the wrong language."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator

import pytest

from falctl.apikeys import hash_key
from tests.compat.clients import CLIENT_APP, OWNER, Calling, calling
from tests.process.harness import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

STEP_S = 60.0
CONFIG = '[server]\ntls_port = 0\nheader_timeout = "5s"\n'
SCRIPT = f"""
import fal_client, fal_client.client as module
assert module.RUN_URL_FORMAT.startswith("https://")
app = "{OWNER}/client-app"
print(fal_client.run(app, {{"prompt": "run"}})["prompt"])
handle = fal_client.submit(app, {{"prompt": "submit"}})
assert handle.status_url.startswith("https://"), handle
print(handle.get()["prompt"])
print([event["i"] for event in fal_client.stream(app, {{"prompt": "x"}})])
"""


@pytest.fixture(scope="module")
def c() -> Iterator[Calling]:
    with calling(config=CONFIG, args=("--runners", "1", "--tls")) as one:
        yield one


def variables(f: Falctl, shell: str = "plain") -> dict[str, str]:
    done = f.run("env", "--shell", shell)
    assert done.returncode == 0, done.stderr
    pairs = (line.partition("=") for line in done.stdout.splitlines() if line and line[0] != "#")
    return {name: value for name, _, value in pairs}


def tls_address(f: Falctl) -> tuple[str, int]:
    host, _, port = variables(f)["FAL_RUN_HOST"].removesuffix("/run").rpartition(":")
    return host, int(port)


def run_script(f: Falctl, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FAL")}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environ | variables(f),
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=False,
    )


def test_the_client_finds_it_by_its_own_variables(c: Calling) -> None:
    done = run_script(c.falctl)
    assert done.stdout.splitlines() == ["run", "submit", "[0, 1, 2]"], done.stderr


def test_the_variables_can_be_taken_up_by_a_shell_and_say_what_they_do_not_cover(c: Calling) -> None:
    printed = c.falctl.run("env").stdout
    assert "uploads (rest.fal.ai, v3.fal.media)" in printed
    done = subprocess.run(
        [
            "sh",
            "-c",
            f'eval "$({sys.executable} -P -m falctl env)"; echo $FAL_KEY $FAL_QUEUE_RUN_HOST $SSL_CERT_FILE',
        ],
        env=c.falctl.environ,
        cwd=c.falctl.cwd,
        capture_output=True,
        text=True,
        timeout=STEP_S,
        check=True,
    )
    plain = variables(c.falctl)
    expected = [plain[name] for name in ("FAL_KEY", "FAL_QUEUE_RUN_HOST", "SSL_CERT_FILE")]
    assert done.stdout.split() == expected
    assert c.falctl.run("env", "--shell", "fish").stdout.splitlines()[-1].startswith("set -gx NO_PROXY ")
    wrong = c.falctl.run("env", "--shell", "cmd")
    assert (wrong.returncode, "write sh, fish, plain" in wrong.stderr) == (2, True)


def test_http_stays_where_it_was(c: Calling) -> None:
    assert c.fal.run(c.app, {"prompt": "x"})["prompt"] == "x"
    assert c.falctl.get("/health").status == 200


def test_who_speaks_http_to_the_tls_port_is_cut_off(c: Calling) -> None:
    with socket.create_connection(tls_address(c.falctl), timeout=STEP_S) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(4096):
                received += chunk
    assert b"HTTP/" not in received


def test_who_says_nothing_to_the_tls_port_is_cut_off(c: Calling) -> None:
    with (
        socket.create_connection(tls_address(c.falctl), timeout=STEP_S) as client,
        contextlib.suppress(ConnectionResetError),
    ):
        assert client.recv(1) == b""


def test_who_speaks_tls_to_the_http_port_is_told_at_once(c: Calling) -> None:
    host, _, port = c.falctl.url.removeprefix("http://").rpartition(":")
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, int(port)), timeout=STEP_S) as client,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        context.wrap_socket(client, server_hostname="localhost")


def test_a_router_that_is_restarted_keeps_the_port_and_the_certificate(c: Calling) -> None:
    ca = (c.falctl.home.tls / "ca.pem").read_bytes()
    before = tls_address(c.falctl)
    epoch = c.falctl.board().router().epoch  # type: ignore[union-attr]
    os.kill(c.falctl.pids()["router"], signal.SIGKILL)
    until(
        lambda: (row := c.falctl.board().router()) is not None and row.epoch > epoch,
        within_s=STEP_S,
        what="another router",
    )
    assert tls_address(c.falctl) == before
    done = run_script(c.falctl)
    assert done.stdout.splitlines() == ["run", "submit", "[0, 1, 2]"], done.stderr
    assert (c.falctl.home.tls / "ca.pem").read_bytes() == ca


def test_keys_are_asked_for_there_too_and_the_users_is_printed() -> None:
    key = "falctl_tls"
    config = f'{CONFIG}tls = "on"\napi_keys = ["{hash_key(key)}"]\n'
    with Falctl(CLIENT_APP, args=("--runners", "1"), config=config) as f:
        refused = f.run("env")
        assert (refused.returncode, refused.stdout) == (2, "")  # a shell that evaluates it gets nothing
        f.environ["FALCTL_KEY"] = key
        done = run_script(f)
        assert done.stdout.splitlines() == ["run", "submit", "[0, 1, 2]"], done.stderr
        wrong = f"import os; os.environ['FAL_KEY'] = 'wrong'; import fal_client; fal_client.run('{OWNER}/client-app', {{}})"
        assert "401" in run_script(f, wrong).stderr


def test_without_tls_it_says_how_to_get_it() -> None:
    with Falctl(args=("--runners", "1")) as f:
        done = f.run("env")
        assert (done.returncode, "start it with `falctl up --tls`" in done.stderr) == (2, True)
        assert not f.home.tls.exists()


def test_a_port_that_is_taken_is_named_by_its_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Falctl(config=f'[server]\ntls = "on"\ntls_port = {port}\n', start=False) as f:
            f.start()
            assert f.wait() == 2
            assert f"server.tls_port: {port} is in use" in f.log
            assert f"tls_port = {port + 1}" in f.log
