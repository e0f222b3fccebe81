"""What a real fal.App declares: what others are told of it, what a person is told, and who may overrule it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from falctl.wire import Declared, Failed, Hello, Ready
from tests.host.harness import Host

pytestmark = pytest.mark.process

DECLARING = "tests/compat/fal_probe_app.py::Declaring"


def told(host: Host) -> list[str]:
    return [line.partition("fal.app ")[2] for line in host.output().splitlines() if "fal.app " in line]


def test_what_concerns_the_router_and_the_supervisor_reaches_them() -> None:
    with Host(DECLARING, spec={"peers": 2}, wait=False) as host:
        assert host.heard(Declared) == Declared(setup_timeout_s=1800, request_timeout_s=7200)
        assert host.heard(Ready) == Ready(1, None, "my-name")
        with host.events() as events:
            hello = events.until(Hello)
        assert (hello.app_name, hello.start_timeout_s, hello.request_timeout_s) == ("my-name", 7, 7200)
        assert hello.retries == {"timeout": 1, "server_error": 10}
        assert hello.retry_skips == ["connection_error"]


def test_what_holds_differently_is_said_line_by_line() -> None:
    with Host(DECLARING, spec={"peers": 2}) as host:
        data = host.spec.data_dir
        there_are = "there are 2 runners, always up; runners.count says how many"
        assert told(host) == [
            "not used here: app_auth='private'; server.api_keys decides who may call, and nobody needs a key",
            "not used here: concurrency_buffer=2, scaling_delay=3; nothing is scaled: " + there_are,
            "max_concurrency=9 is taken as 2: " + there_are,
            "min_concurrency=5 is taken as 2: " + there_are,
            f"data_mounts: FAL_PERSISTENT_DIR is {data} here; "
            "code that writes /data itself needs a link of that name to it",
            "not used here: data_mounts=['/elsewhere', '../x']; only folders of /data are made",
        ]
        made = [str(path.relative_to(data)) for path in Path(data).rglob("*")]
        assert sorted(made) == ["models", "models/mine", "shared"]
        assert not (host.home / "x").exists()


def test_it_is_said_once_by_the_first_runner_of_each_app() -> None:
    with Host(DECLARING, spec={"peers": 2, "place": 1}) as host:
        assert told(host) == []
    with Host(DECLARING, spec={"alias": "draw"}) as host:
        assert "apps.draw.count says how many" in "".join(told(host))


def test_a_limit_that_somebody_has_set_goes_before_what_the_app_declares() -> None:
    spec: dict[str, Any] = {"given": ["setup_timeout", "request_timeout"]}
    runners = {"setup_timeout": 60, "request_timeout": 90}
    with Host(DECLARING, spec=spec, config={"runners": runners}, wait=False) as host:
        assert host.heard(Declared) == Declared()
        host.heard(Ready)
        with host.events() as events:
            assert events.until(Hello).request_timeout_s == 90
        lines = told(host)
        assert "startup_timeout=1800 is cut to runners.setup_timeout, which is set to 1m" in lines
        assert "request_timeout=7200 is cut to runners.request_timeout, which is set to 90s" in lines


def test_a_limit_that_is_longer_than_the_apps_changes_nothing() -> None:
    runners = {"setup_timeout": "1h", "request_timeout": "3h"}
    given: dict[str, Any] = {"given": ["setup_timeout", "request_timeout"]}
    with Host(DECLARING, spec=given, config={"runners": runners}, wait=False) as host:
        assert host.heard(Declared) == Declared()
        host.heard(Ready)
        assert not any("cut" in line for line in told(host))
        with host.events() as events:
            assert events.until(Hello).request_timeout_s == 7200


def test_an_app_that_declares_nothing_leaves_everything_as_it_is() -> None:
    with Host("tests/compat/fal_probe_app.py::NoHints", wait=False) as host:
        assert host.heard(Declared) == Declared()
        assert host.heard(Ready) == Ready(1, None, "no-hints")
        with host.events() as events:
            hello = events.until(Hello)
        assert (hello.start_timeout_s, hello.request_timeout_s, hello.retries, hello.retry_skips) == (
            None, None, {}, []
        )  # fmt: skip
        assert told(host) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "UnknownCondition",
            "skip_retry_conditions is ['rain']; it may name server_error, timeout, connection_error",
        ),
        (
            "OddRetries",
            "retry_config is {'timeout': 3}; write for example "
            '{"timeout": {"retries": 1}}, of server_error, timeout, connection_error',
        ),
    ],
)
def test_retries_that_make_no_sense_are_refused_in_one_line(name: str, line: str) -> None:
    with Host(f"tests/compat/fal_probe_app.py::{name}", wait=False) as host:
        failed: Any = host.heard(Failed)
        assert failed.message.endswith(line)
        assert failed.exit_code == 2
