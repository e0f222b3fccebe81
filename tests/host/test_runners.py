"""The two small runners do what their requests say."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from tests.host.harness import STEP_S, Host

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def echo() -> Iterator[Host]:
    with Host("runners.echo:Echo") as host:
        yield host


@pytest.fixture(scope="module")
def simulated() -> Iterator[Host]:
    config = {"simulated": {"load_s": 0.2, "exec_s": 0.05}, "cache": {"max_models": 1}}
    with Host("runners.simulated:SimulatedModels", config=config) as host:
        yield host


def test_echo_gives_back_what_it_gets(echo: Host) -> None:
    assert echo.post("/", {"a": [1, "\u0151"]}).json == {"a": [1, "\u0151"]}


def test_echo_streams_events(echo: Host) -> None:
    reply = echo.post("/stream", {"n": 3})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.body == b'data: {"n": 0}\n\ndata: {"n": 1}\n\ndata: {"n": 2}\n\n'


@pytest.mark.parametrize("path", ["/sleep", "/asleep"])
def test_echo_sleeps(echo: Host, path: str) -> None:
    reply = echo.post(path, {"seconds": 0.05})
    assert reply.json == {"slept_s": 0.05}
    assert float(reply.timings["exec_s"]) >= 0.05


def test_echo_names_its_process_and_dies_when_asked() -> None:
    with Host("runners.echo:Echo") as host:
        assert host.post("/pid").json == {"pid": host.process.pid, "runner": 0}
        with pytest.raises((http.client.HTTPException, OSError)):
            host.post("/crash")
        assert host.process.wait(timeout=STEP_S) == 7


def test_a_simulated_model_costs_its_load_once(simulated: Host) -> None:
    first, second = simulated.post("/", {"model": "a"}), simulated.post("/", {"model": "a"})
    assert first.json == {"model": "a", "loaded": True, "load_s": 0.2, "exec_s": 0.05, "runner": 0}
    assert second.json == {"model": "a", "loaded": False, "load_s": 0.0, "exec_s": 0.05, "runner": 0}
    assert (first.timings["cache"], second.timings["cache"]) == ("disk", "hit")
    assert float(first.timings["load_s"]) >= 0.2
    assert float(second.timings["exec_s"]) >= 0.05


def test_a_request_may_name_its_own_costs(simulated: Host) -> None:
    done = simulated.post("/", {"model": "b", "load_s": 0.0, "exec_s": 0.01, "steps": 4}).json
    assert (done["load_s"], done["exec_s"], done["loaded"]) == (0.0, 0.01, True)


def test_a_model_may_name_its_own_load(simulated: Host) -> None:
    done = simulated.post("/", {"model": "big@0.35", "exec_s": 0.01})
    assert (done.json["load_s"], done.json["loaded"]) == (0.35, True)
    assert float(done.timings["load_s"]) >= 0.35
    assert simulated.post("/", {"model": "me@home", "exec_s": 0.01}).json["load_s"] == 0.2
