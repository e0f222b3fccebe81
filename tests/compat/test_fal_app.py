"""A real fal.App in our host: where its code runs, what its answers become, how it ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from falctl.clock import wall_clock
from falctl.core.lifetimes import ends_at
from falctl.errors import EXIT_OVERDUE
from falctl.wire import EXIT_RETIRED, Ending, Failed, Ready
from tests.host.harness import STEP_S, Host, Reply
from tests.wait import until

pytestmark = pytest.mark.process

PROBE = "tests/compat/fal_probe_app.py"
KEYS = {
    "FAL_KEY": "real:secret",
    "FAL_KEY_ID": "real",
    "FAL_KEY_SECRET": "secret",
    "FAL_USE_LOCAL_UPLOADER": "1",
    "FAL_API_SOCKET": "/nowhere",
}


def ask(host: Host, what: str, arg: str = "", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return host.post("/", {"what": what, "arg": arg}, named)


@pytest.fixture(scope="module")
def probe() -> Iterator[Host]:
    with Host(f"{PROBE}::Probe", environ=KEYS) as host:
        yield host


@pytest.fixture
def fresh() -> Iterator[Host]:
    with Host(f"{PROBE}::Probe") as host:
        yield host


def refusal(name: str, cards: tuple[str, ...] = ()) -> Failed:
    with Host(f"{PROBE}::{name}", cards=cards, wait=False) as host:
        said: Failed = host.heard(Failed)
        return said


def test_sync_code_runs_on_the_runners_own_threads(probe: Host) -> None:
    ask(probe, "load", "m")
    told = ask(probe, "load", "m", x_fal_request_id="r-1").json
    assert told["id"] == "r-1"
    assert told["states"] == ["SETUP", "RUNNING"]
    threads = [told["thread"], told["setup_thread"], *told["hint_threads"]]
    assert all(name.startswith("app") for name in threads), threads


def test_max_multiplexing_is_its_slots_and_no_more(probe: Host, tmp_path: Path) -> None:
    assert probe.row.slots == 2
    with_names = [f"/together?folder={tmp_path}&name={name}" for name in "ab"]
    both = [probe.later(path) for path in with_names]
    assert [later.reply().json for later in both] == [True, True]


def test_hints_are_published_before_the_answer_is_out_also_of_a_stream(probe: Host) -> None:
    reply = ask(probe, "load", "fresh", x_fal_runner_hint="fresh")
    assert "fresh" in reply.headers["x-fal-runner-hints"].split(",")
    assert reply.timings["cache"] == "disk"
    assert probe.post("/stream").body == b"data: 1\n\n"
    assert "streamed" in probe.row.hints  # type: ignore[operator]


def test_a_hints_header_of_the_apps_own_gives_way(probe: Host) -> None:
    connection = probe.connect()
    body = '{"what": "own-hints"}'
    connection.request("POST", "/", body, {"content-type": "application/json"})
    response = connection.getresponse()
    response.read()
    sent = [value for name, value in response.getheaders() if name.lower() == "x-fal-runner-hints"]
    connection.close()
    assert len(sent) == 1
    assert sent != ["of,the,app"]


def test_an_app_without_provide_hints_gives_none(probe: Host) -> None:
    with Host(f"{PROBE}::NoHints") as host:
        reply = host.post("/")
        assert (reply.status, reply.json) == (200, 1)
        assert "x-fal-runner-hints" not in reply.headers
        assert host.row.hints is None


def test_endpoints_named_as_settings_are_served() -> None:
    with Host(f"{PROBE}::NamedAsSettings") as host:
        assert [host.post(path).json for path in ("/image", "/secrets")] == ["image", "secrets"]


@pytest.mark.parametrize(
    ("what", "status", "detail"),
    [
        ("app", 418, "the app says no"),
        ("bug", 500, "Internal Server Error"),
    ],
)
def test_what_it_raises_becomes_the_answer_that_fal_gives(
    probe: Host, what: str, status: int, detail: str
) -> None:
    reply = ask(probe, what)
    assert (reply.status, reply.json["detail"]) == (status, detail)


def test_field_errors_and_billing_pass(probe: Host) -> None:
    reply = ask(probe, "field")
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "what"]
    assert ask(probe, "load").headers["x-fal-billable-units"] == "2"
    assert probe.post("/nowhere").json == {"detail": "Path /nowhere not found"}


def test_no_traceback_reaches_a_client_and_no_package_list_the_log(probe: Host) -> None:
    assert b"Traceback" not in ask(probe, "bug", "shown once").body
    output = probe.output()
    assert output.count("ValueError: a bug: shown once") == 1
    assert "Python packages installed" not in output


def test_files_are_stored_here_whatever_repository_is_named(probe: Host) -> None:
    made: dict[str, str] = probe.post("/store").json
    data = made.pop("data")
    assert data == probe.spec.data_dir
    for url in made.values():
        assert url.startswith(probe.spec.files_url + "/")
        assert (probe.files / url.rpartition("/")[2]).stat().st_size > 0


def test_files_are_kept_as_long_as_their_request_says_however_they_are_stored(probe: Host) -> None:
    header = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 600}'}
    made: dict[str, str] = probe.post("/store", None, header).json
    made.pop("data")
    for how, url in made.items():
        assert 500 < ends_at(url, otherwise=0.0) - wall_clock().timestamp() <= 601, how


def test_an_apps_own_lifetime_of_a_file_counts(probe: Host) -> None:
    header = {"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 600}'}
    url: str = probe.post("/store_for_ever", None, header).json
    assert ends_at(url, otherwise=0.0) == math.inf


def test_nothing_that_opens_the_cloud_is_in_its_environment(probe: Host) -> None:
    environ: dict[str, str] = probe.post("/environ").json
    assert not set(environ) & set(KEYS)
    assert environ["FAL_HOME_DIR"].startswith(probe.spec.data_dir)


def test_an_upload_to_the_callers_bucket_is_refused(probe: Host) -> None:
    reply = ask(probe, "load", x_app_fal_upload_policy="{}")
    assert reply.status == 400
    assert "stays on this machine" in reply.json["detail"]


def test_what_is_not_used_is_said_in_one_line(probe: Host) -> None:
    lines = [line for line in probe.output().splitlines() if "fal.app" in line]
    assert len(lines) == 2
    assert "machine_type='GPU-H100', requirements=['no-such-package==1']" in lines[0]
    assert "A_SECRET_THAT_IS_NOT_THERE" in lines[1]


@pytest.mark.parametrize("what", ["oom", "unavailable", "stop"])
def test_by_fals_rules_an_answer_ends_the_runner(fresh: Host, what: str) -> None:
    reply = ask(fresh, what)
    assert reply.status == (200 if what == "stop" else 503)
    assert "x-fal-stop-runner" not in reply.headers
    assert fresh.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_a_gpu_error_by_its_text_ends_the_runner(fresh: Host) -> None:
    reply = ask(fresh, "bug", "no triton here")
    assert (reply.status, reply.json["detail"]) == (503, "GPU error")
    assert fresh.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_a_503_that_says_so_does_not_end_the_runner(probe: Host) -> None:
    assert ask(probe, "stay").status == 503
    assert ask(probe, "load").status == 200


def test_a_runner_that_retires_lets_the_others_finish(fresh: Host, tmp_path: Path) -> None:
    entered = tmp_path / "entered"
    other = fresh.later(f"/until-exit?entered={entered}")
    until(entered.exists, within_s=STEP_S, what="the other is inside")
    assert ask(fresh, "unavailable").status == 503
    assert ask(fresh, "load").headers["x-falctl-bounced"] == "1"
    fresh.send(Ending())
    assert other.reply().status == 200
    assert fresh.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_told_that_it_ends_the_app_hears_it_once_on_the_main_thread_then_is_torn_down(
    fresh: Host, tmp_path: Path
) -> None:
    entered = tmp_path / "entered"
    running = fresh.later(f"/until-exit?entered={entered}")
    until(entered.exists, within_s=STEP_S, what="it is inside")
    fresh.send(Ending())
    assert running.reply().status == 200
    assert fresh.stop() == 0
    output = fresh.output()
    assert output.count("HANDLE_EXIT on MainThread") == 1
    assert "TEARDOWN in TERMINATING" in output


def test_a_sync_endpoint_over_its_request_timeout_is_answered_504_and_its_process_ends() -> None:
    with Host(f"{PROBE}::Impatient") as host:
        reply = host.post("/hang")
        assert (reply.status, reply.headers["x-fal-error-type"]) == (504, "request_timeout")
        assert host.process.wait(timeout=STEP_S) == EXIT_OVERDUE


def test_an_async_endpoint_over_its_request_timeout_is_cancelled_and_the_runner_goes_on() -> None:
    with Host(f"{PROBE}::Impatient", wait=False) as host:
        assert host.ready() == Ready(1, 77.0, "impatient")
        for _ in range(2):
            assert host.post("/slowly").status == 504


def test_a_runner_that_served_and_is_idle_for_its_keep_alive_is_torn_down_for_another() -> None:
    with Host(f"{PROBE}::ShortLived") as host:
        host.post("/")
        assert host.process.wait(timeout=STEP_S) == EXIT_RETIRED
        assert "TEARDOWN" in host.output()


@pytest.mark.parametrize(("name", "requests"), [("ShortLived", 0), ("Kept", 1)])
def test_one_that_has_served_nothing_stays_and_so_do_the_first_of_min_concurrency(
    name: str, requests: int
) -> None:
    with Host(f"{PROBE}::{name}") as host:
        for _ in range(requests):
            host.post("/")
        until(
            lambda: host.row.beat_at > host.row.progress_at + 2, within_s=STEP_S, what="it was idle for 2 s"
        )
        assert host.process.poll() is None


def test_which_runners_those_are_is_counted_app_by_app() -> None:
    with Host(f"{PROBE}::Kept", spec={"place": 1, "peers": 2}) as host:
        host.post("/")
        assert host.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_an_app_whose_health_check_fails_when_it_asks_for_one_is_replaced() -> None:
    with Host(f"{PROBE}::Sickly") as host:
        well = host.post("/", {"sick": False})
        assert (well.status, "x-fal-runner-health-check" in well.headers) == (200, False)
        until(lambda: "shown: checked well" in host.output(), within_s=STEP_S, what="a check of the well one")
        assert host.post("/", {"sick": True}).status == 200
        assert host.process.wait(timeout=STEP_S) == EXIT_RETIRED
        assert "health check /check: status 500" in host.output()


def test_a_setup_over_its_startup_timeout_ends_the_start() -> None:
    assert "startup_timeout, 1 s" in refusal("SlowStart").message


@pytest.mark.parametrize(
    ("name", "said", "code"),
    [
        ("FailsToStart", "setup() raised RuntimeError: no weights", 1),
        ("Negative", "request_timeout is -1; it must be a number above 0", 2),
        ("Pathless", 'has no endpoint; mark a method with @fal.endpoint("/")', 2),
        ("Taken", "has the path '/queue', which falctl keeps", 2),
        ("Nobody", "it has Declaring, FailsToStart, Impatient, Kept, NamedAsSettings, Negative, NoHints", 2),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(name: str, said: str, code: int) -> None:
    failed = refusal(name)
    assert said in failed.message
    assert "\n" not in failed.message
    assert failed.exit_code == code


def test_more_gpus_than_a_runner_has_are_refused_with_the_group_to_write() -> None:
    assert "runners.gpus = [[0, 1]]" in refusal("Wide", cards=("GPU-1",)).message


def test_without_the_sdk_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT_SDK)
    environ = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    with Host(f"{PROBE}::Probe", environ=environ, wait=False) as host:
        failed: Any = host.heard(Failed)
        assert 'pip install "falctl[fal]"' in failed.message
        assert failed.exit_code == 2


_WITHOUT_SDK = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name == "fal":
            raise ModuleNotFoundError("No module named 'fal'", name="fal")
sys.meta_path.insert(0, Gone())
"""
