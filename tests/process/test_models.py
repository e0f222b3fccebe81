"""Models by name, as a person has them loaded, unloaded and pinned, through every real process there is."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.process.harness import Falctl
from tests.wait import until
from tools.capture_status import PtyScreen

pytestmark = pytest.mark.process

CONFIG = "[cache]\nmax_models = 2\npreload = ['digits-ink', 'digits-ember@1']\n"


@pytest.fixture(scope="module")
def demo() -> Iterator[Falctl]:
    with Falctl("runners.diffusion:AnyModelRunner", config=CONFIG, args=("--runners", "2")) as f:
        yield f


def held(f: Falctl, runner: int) -> dict[str, str]:
    """Return the tier of each model that a runner knows, and whether it is pinned."""
    models = f.status()["runners"][runner]["models"]
    return {
        m["name"]: m["tier"] + (", pinned" if m["pinned"] else "") for m in models if m["state"] == "ready"
    }


def said(f: Falctl, *arguments: str, code: int = 0) -> str:
    done = f.run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert not done.stdout or not done.stderr
    return (done.stdout + done.stderr).strip()


def test_what_is_preloaded_is_there_before_the_first_request(demo: Falctl) -> None:
    until(lambda: held(demo, 0) == {"digits-ink": "vram"}, within_s=30, what="runner 0 has its own")
    until(lambda: held(demo, 1) == {"digits-ember": "vram"}, within_s=30, what="runner 1 has its own")
    assert demo.run("run", "digits-ink", "one", "-o", "one.png").stdout.count("hit (was warm)") == 1


def test_a_model_goes_and_comes_back_by_name(demo: Falctl) -> None:
    assert "digits-classic is loaded on runner 1 in " in said(demo, "load", "digits-classic", "--runner", "1")
    assert said(demo, "load", "digits-classic") == "digits-classic is on runner 1 already"
    assert (
        said(demo, "unload", "digits-classic", "--tier", "ram")
        == "digits-classic is in host memory on runner 1"
    )
    assert held(demo, 1)["digits-classic"] == "ram"
    assert said(demo, "load", "digits-classic", "--tier", "ram") == "digits-classic is in host memory already"
    assert said(demo, "load", "digits-classic", "--runner", "1").startswith(
        "digits-classic is loaded on runner 1"
    )
    assert said(demo, "unload", "digits-classic") == "digits-classic is unloaded on runner 1"
    assert held(demo, 1).get("digits-classic", "disk") == "disk"


def test_mistakes_are_one_line_and_exit_code_2_and_failures_1(demo: Falctl) -> None:
    assert "digits-nonsense is not loaded: " in said(demo, "load", "digits-nonsense", code=1)
    assert said(demo, "load", "digits-ink", "--runner", "9", code=2) == "falctl: no runner 9; there are 0, 1"
    assert said(demo, "load", "digits-ink", "--tier", "x", code=2) == "falctl: --tier x: write vram or ram"
    assert "is pinned on no runner" in said(demo, "unpin", "digits-ink", code=2)


def test_a_pin_holds_against_everything_and_over_a_kill(demo: Falctl) -> None:
    assert said(demo, "pin", "digits-ember", "--runner", "1") == "digits-ember is pinned on runner 1"
    assert "digits-ember is pinned; `falctl unpin` lets it leave" in said(
        demo, "unload", "digits-ember", code=1
    )
    for model in ("digits-classic", "digits-blueprint"):
        said(demo, "load", model, "--runner", "1")
    assert held(demo, 1)["digits-ember"] == "vram, pinned"
    os.kill(demo.life(1).pid, signal.SIGKILL)
    until(lambda: held(demo, 1).get("digits-ember") == "vram, pinned", within_s=90, what="it is pinned again")
    assert said(demo, "unpin", "digits-ember") == "digits-ember may leave again on runner 1"


def test_a_load_is_told_on_a_terminal_while_it_runs() -> None:
    with Falctl("runners.simulated:SimulatedModels", args=("--runners", "1")) as f:
        command = f._command("load", "slow@1.5")
        with PtyScreen(command, columns=80, rows=5, env=f.environ) as screen:
            assert screen.until(lambda s: "slow@1.5 loads on runner 0" in s.text, within_s=120)
            assert screen.end(within_s=120) == 0
            assert re.match(r"slow@1.5 is loaded on runner 0 in [1-9]\d*\.", screen.text)
        f.wait_line(r"runner\.loaded runner=0 model=slow@1\.5 from=disk s=[1-9]")
        command = f._command("load", "slow@9")
        with PtyScreen(command, columns=120, rows=5, env=f.environ) as screen:
            assert screen.until(lambda s: "slow@9 loads on runner 0" in s.text, within_s=120)
            os.kill(f.pids()["router"], signal.SIGKILL)
            assert screen.end(within_s=120) == 1
            assert "slow@9 may be loaded yet: the router ended before it could tell" in screen.text
        assert "slow@9 is " in said(f, "load", "slow@9"), "waited for, or found"
