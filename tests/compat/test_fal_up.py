"""A real fal.App behind `falctl up`: files that come back, an end that it hears of, a runner that it has replaced."""

from __future__ import annotations

import signal
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.apikeys import hash_key
from falctl.clock import monotonic_s
from falctl.core.lifecycle import STABLE_S
from tests.process.harness import Falctl, Reply
from tests.wait import until

pytestmark = pytest.mark.process

PROBE = Path(__file__).parent / "fal_probe_app.py"
STEP_S = 60.0


@pytest.fixture(scope="module")
def probe() -> Iterator[Falctl]:
    with Falctl(f"{PROBE}::Probe", args=("--runners", "1"), env={"FAL_KEY": "real:secret"}) as f:
        yield f


def reads(f: Falctl, url: str, folder: Path, headers: dict[str, str] | None = None) -> Reply:
    query = urllib.parse.urlencode({"url": url, "folder": str(folder)})
    return f.post(f"/read?{query}", headers=headers)


def test_an_app_reads_back_what_we_serve_and_nothing_else_of_this_machine(
    probe: Falctl, tmp_path: Path
) -> None:
    stored = probe.post("/store").json
    url = stored["bytes"]
    assert probe.get(url.removeprefix(probe.url)).body == b"abc"
    assert reads(probe, url, tmp_path).json == 3
    assert probe.post(f"/look?url={stored['image']}").json == [8, 6]
    files = f"{probe.url}/files"
    elsewhere = (
        url.replace(probe.url, "http://127.0.0.1:9"),
        url.replace("127.0.0.1", "localhost"),
        f"{probe.url}/falctl/status",
        f"{probe.url}/health",
        f"{files}/../health",
        f"{files}/%2e%2e/health",
        f"{files}/..%2f..%2fetc%2fpasswd",
        f"{url}/../../health",
        f"{url}?x=1",
        url.replace("http://", "http://me@"),
    )
    for other in elsewhere:
        assert reads(probe, other, tmp_path).status == 500, other
    until(
        lambda: probe.log.count("DownloadError: Hostname resolves to a non-routable") >= len(elsewhere),
        within_s=STEP_S,
        what="each is refused by the guard",
    )
    gone = url.rpartition("/")[0] + "/" + "x" * 32 + ".json"
    assert reads(probe, gone, tmp_path).status == 500
    probe.wait_line("status code 404")


def test_a_redirect_leads_to_stored_files_alone(probe: Falctl, tmp_path: Path) -> None:
    url = probe.post("/store").json["bytes"]
    assert probe.post(f"/redirected?target={urllib.parse.quote(url)}&folder={tmp_path}").json == 3
    for path in ("/falctl/status", "/health"):
        target = urllib.parse.quote(probe.url + path)
        assert probe.post(f"/redirected?target={target}&folder={tmp_path}").status == 500


def test_an_app_needs_no_key_to_read_back_what_we_serve(tmp_path: Path) -> None:
    key = "falctl_a-key-of-this-test"
    config = f'[server]\napi_keys = ["{hash_key(key)}"]\n'
    sent = {"authorization": f"Key {key}"}
    with Falctl(f"{PROBE}::Probe", args=("--runners", "1"), config=config) as f:
        stored = f.post("/store", headers=sent).json
        assert f.post("/store").status == 401
        assert reads(f, stored["bytes"], tmp_path, sent).json == 3
        assert f.post(f"/look?url={stored['image']}", headers=sent).json == [8, 6]


def test_a_runner_that_an_answer_ended_is_replaced_and_warm_for_nothing(probe: Falctl) -> None:
    probe.post("/", {"what": "load", "arg": "m"})
    assert probe.status()["runners"][0]["hints"] == ["m"]
    epoch, ready_at = probe.life(0).epoch, probe.life(0).since_at
    until(lambda: monotonic_s() - ready_at > STABLE_S, within_s=STEP_S, what="it has served a while")
    assert probe.post("/", {"what": "oom"}).status == 503
    until(
        lambda: probe.life(0).epoch > epoch and probe.life(0).state == "ready",
        within_s=STEP_S,
        what="another runner",
    )
    probe.wait_line(r"cpu0.backoff epoch=\d+ retired: its app asked for another process")
    assert probe.status()["runners"][0]["hints"] == []
    assert probe.post("/", {"what": "load", "arg": "n"}).status == 200


def test_on_ctrl_c_the_app_is_told_while_its_requests_run_and_torn_down_after(tmp_path: Path) -> None:
    entered = tmp_path / "entered"
    replies: list[Reply] = []
    patient = '[runners]\ndrain_timeout = "1h"\n'
    with Falctl(f"{PROBE}::Probe", args=("--runners", "1"), config=patient) as f:
        asking = threading.Thread(
            target=lambda: replies.append(f.post(f"/until-exit?entered={entered}", timeout_s=STEP_S))
        )
        asking.start()
        until(entered.exists, within_s=STEP_S, what="the request runs")
        assert f.stop(signal.SIGINT, within_s=STEP_S) == 0
        asking.join(STEP_S)
        assert [reply.status for reply in replies] == [200]
        assert "HANDLE_EXIT on MainThread" in f.log
        assert "TEARDOWN in TERMINATING" in f.log


@pytest.mark.parametrize("given", [True, False])
def test_a_limit_goes_before_the_apps_only_if_somebody_has_written_it(given: bool) -> None:
    config = '[runners]\nrequest_timeout = "1h"\n' if given else ""
    with Falctl(f"{PROBE}::Declaring", args=("--runners", "1"), config=config) as f:
        f.wait_line("fal.app max_concurrency=9 is taken as 1: there is 1 runner")
        f.stop()
        assert (
            "request_timeout=7200 is cut to runners.request_timeout, which is set to 1h" in f.log
        ) is given


def test_what_runs_gets_the_apps_own_time_to_finish() -> None:
    with Falctl(f"{PROBE}::Impatient", args=("--runners", "1")) as f:
        f.stop()
        assert "what runs gets 77 s to finish" in f.log
