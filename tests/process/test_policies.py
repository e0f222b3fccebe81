"""A policy of one's own decides over HTTP; one that cannot be made stops falctl before anything is started."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.process.harness import Falctl
from tests.wait import until

pytestmark = pytest.mark.process
ECHO = "runners.echo:Echo"

MINE = '''
from falctl.core.policies import Execute

class Highest:
    """The oldest request goes to the free runner with the highest number."""
    def choose(self, state, *, now):
        free = [r.runner for r in state.fleet.free()]
        oldest = state.queue.oldest()
        return Execute(oldest.request, max(free), "highest") if oldest and free else None

class Broken(Highest):
    def choose(self, state, *, now):
        if len(state.fleet.runners) == 2:
            raise ZeroDivisionError("no mood")

class Blind:
    pass
'''


def started(policy: str) -> Falctl:
    f = Falctl(ECHO, config=f'[routing]\npolicy = "{policy}"\n', args=("--runners", "2"), start=False)
    (f.cwd / "mine.py").write_text(MINE)
    return f


def test_a_policy_in_the_working_directory_decides() -> None:
    with started("mine:Highest") as f:
        f.start()
        f.wait_ready()
        assert {f.post("/", {"n": n}).headers["x-falctl-runner"] for n in range(4)} == {"1"}
        assert f.status()["fleet"]["policy"] == "mine:Highest"


def test_a_policy_that_fails_in_office_is_replaced_and_everybody_is_served() -> None:
    with started("mine:Broken") as f:
        f.start()
        f.wait_ready()
        assert f.post("/", {"n": 1}).status == 200
        assert "Auto decides from now on" in f.wait_line(r"policy\.failed policy=mine:Broken")
        assert any("ZeroDivisionError: no mood" in line for line in f.lines)
        assert [f.post("/", {"n": n}).status for n in range(3)] == [200] * 3
        assert sum("policy.failed" in line for line in f.lines) == 1


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("nowhere:Policy", "there is no module 'nowhere'"),
        ("mine:Nobody", "mine has no class Nobody"),
        ("mine:Blind", "Blind has no method choose(state, *, now)"),
        ("ends:Policy", "its import ended the process"),
    ],
)
def test_a_policy_that_cannot_be_made_is_a_configuration_error(policy: str, why: str) -> None:
    with started(policy) as f:
        (f.cwd / "ends.py").write_text("import os\nprint('bye')\nos._exit(0)\n")
        f.start()
        assert f.wait() == 2
        [line] = [line for line in f.lines if line.startswith("falctl: ")]
        assert line.startswith(f'falctl: routing.policy = "{policy}": {why}')
        assert "mend it" in line
        assert not f.home.board.exists(), "nothing was started"


def test_a_reload_takes_up_a_policy_or_keeps_the_old_one() -> None:
    with Falctl(ECHO, start=False) as f:
        (f.cwd / "mine.py").write_text(MINE)
        path = f.cwd / "falctl.toml"
        path.write_text('[routing]\npolicy = "mine:Highest"\n[runners]\ncpu_count = 2\n')
        up = f.run("up", "-d", "--port", "0", ECHO)
        assert up.returncode == 0, up.stderr
        f.url = up.stderr.splitlines()[-2].rpartition(" ")[2]
        pid = json.loads(f.home.lock.read_text())["pid"]

        path.write_text('[routing]\npolicy = "mine:Nobody"\n[runners]\ncpu_count = 2\n')
        os.kill(pid, signal.SIGHUP)
        refused = 'config.refused routing.policy = "mine:Nobody": mine has no class Nobody'
        until(lambda: refused in f.home.log.read_text(), within_s=30.0, what="it is refused")
        assert f.status()["fleet"]["policy"] == "mine:Highest"
        assert f.post("/", {}).headers["x-falctl-runner"] == "1"

        path.write_text('[routing]\npolicy = "auto"\nlocality = 2.0\n[runners]\ncpu_count = 2\n')
        os.kill(pid, signal.SIGHUP)
        until(lambda: f.status()["fleet"]["policy"] == "auto", within_s=30.0, what="the new one is shown")
        assert "routing.locality 1.0 -> 2.0 (now)" in f.home.log.read_text()
        assert f.post("/", {}).status == 200
        assert f.run("down").returncode == 0
