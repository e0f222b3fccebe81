"""fal's client talks to a fal.App behind `falctl up`: realtime, raw websockets, streams, and the ends of all of them."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import fal_client
import httpx
import msgpack
import pytest
from fal_client.client import RealtimeError
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from falctl.apikeys import hash_key
from tests.compat.clients import HERE, WITHIN_S, Calling, calling
from tests.compat.test_client_tls import CONFIG as TLS_CONFIG
from tests.compat.test_client_tls import run_script
from tests.process.harness import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

TALK = f"{HERE / 'fal_sockets_app.py'}::Talk"
SECRET = "falctl_a-key-of-this-test"


@pytest.fixture(scope="module")
def talk() -> Iterator[Calling]:
    with calling(TALK, alias="talk") as calls:
        yield calls


@pytest.fixture
def pair() -> Iterator[Calling]:
    with calling(TALK, alias="talk", args=("--runners", "2")) as calls:
        yield calls


def in_flight(falctl: Falctl) -> list[int]:
    runners: list[dict[str, Any]] = falctl.get("/falctl/status").json["runners"]
    return [runner["in_flight"] for runner in runners]


def idle(falctl: Falctl) -> None:
    until(lambda: not any(in_flight(falctl)), within_s=WITHIN_S, what="no slot in use")


@pytest.mark.parametrize("use_jwt", [True, False])
def test_realtime_with_the_sync_client(talk: Calling, use_jwt: bool) -> None:
    with talk.fal.realtime(talk.app, use_jwt=use_jwt, max_buffering=4) as session:
        for n in range(5):
            session.send({"n": n})
            told = session.recv()
            assert told is not None
            assert told["n"] == 2 * n
    with talk.fal.realtime(talk.app, use_jwt=use_jwt, path="/counts") as session:
        session.send({"n": 3})
        assert [(session.recv() or {}).get("n") for _ in range(3)] == [0, 1, 2]
    idle(talk.falctl)


@pytest.mark.parametrize("use_jwt", [True, False])
def test_realtime_with_the_async_client(talk: Calling, use_jwt: bool) -> None:
    async def work(client: fal_client.AsyncClient) -> list[Any]:
        async with client.realtime(talk.app, use_jwt=use_jwt, path="/sums") as session:
            told = []
            for n in (1, 2, 3):
                await session.send({"n": n})
                told.append(await session.recv())
            return told

    assert [each["n"] for each in talk.run_async(work)] == [1, 3, 6]


def test_an_error_of_the_app_is_an_error_of_the_client(talk: Calling) -> None:
    with talk.fal.realtime(talk.app) as session:
        session.send({"n": -1})
        with pytest.raises(RealtimeError, match="INTERNAL_ERROR: no negative numbers"):
            session.recv()


def test_a_raw_websocket_by_the_client_and_on_its_own_path(talk: Calling) -> None:
    with talk.fal.ws_connect(talk.app, path="raw") as websocket:
        websocket.send("headers")
        seen = str(websocket.recv())
        assert "fal_jwt_token" not in seen
        websocket.send("close")
        with pytest.raises(ConnectionClosed) as end:
            websocket.recv()
        assert end.value.rcvd is not None
        assert (end.value.rcvd.code, end.value.rcvd.reason) == (4001, "as you wish")
    with connect(talk.falctl.url.replace("http", "ws") + "/raw", open_timeout=WITHIN_S) as bare:
        bare.send(b"\x00")
        assert bare.recv(WITHIN_S) == b"\x00"


def test_with_keys_configured_the_client_gets_in_with_its_key_alone() -> None:
    keys = f'[server]\napi_keys = ["{hash_key(SECRET)}"]\n'
    with calling(TALK, alias="talk", config=keys, key=SECRET) as calls:
        for use_jwt in (True, False):
            with calls.fal.realtime(calls.app, use_jwt=use_jwt) as session:
                session.send({"n": 1})
                assert (session.recv() or {})["n"] == 2
        stranger = fal_client.SyncClient(key="falctl_another-key")
        with pytest.raises(fal_client.FalClientHTTPError), stranger.realtime(calls.app):
            pass
        stranger._client.close()


HTTP_SCRIPT = """
import json, sys, fal.apps
fal.apps._WS_URL_FORMAT = sys.argv[1] + "/ws/{app_id}"
with fal.apps.ws("me/talk", path="/stream") as connection:
    for n in range(2):
        connection.send({"folder": sys.argv[2], "model": "m"})
        print("".join(connection.stream()).split())
    print(json.loads(connection.run({"n": "no number"}))["detail"][0]["loc"])
"""


def test_http_over_a_websocket_by_the_sdk_of_fal(talk: Calling, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    address = talk.falctl.url.replace("http", "ws")
    done = subprocess.run(
        [sys.executable, "-c", HTTP_SCRIPT, address, str(tmp_path)],
        env={"FAL_KEY": "a:b", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    streamed = str("data: {n: 1} data: {n: 2}".replace("n", '"n"').split())
    assert done.stdout.splitlines() == [streamed, streamed, "['body', 'n']"], done.stderr


SCRIPT = """
import fal_client
with fal_client.SyncClient().realtime("me/talk", use_jwt=False) as session:
    session.send({"n": 4})
    print(session.recv()["n"])
with fal_client.SyncClient().ws_connect("me/talk", path="raw", use_jwt=False) as websocket:
    websocket.send("x" * 3_000_000)
    print(len(websocket.recv()))
"""


def test_realtime_over_tls_by_the_clients_own_variables() -> None:
    with calling(TALK, alias="talk", config=TLS_CONFIG, args=("--runners", "1", "--tls")) as calls:
        done = run_script(calls.falctl, SCRIPT)
        assert done.stdout.split() == ["8", "3000000"], done.stderr


# --- the scheduler -------------------------------------------------------------------------------


def test_sessions_of_one_model_share_a_runner(pair: Calling) -> None:
    """Also while the first goes on: hints are known as soon as the app has answered a second apart."""

    def session_of(model: str) -> str:
        url = pair.falctl.url.replace("http", "ws")
        with connect(
            f"{url}/run/me/talk/realtime?fal_runner_hint={model}", open_timeout=WITHIN_S
        ) as websocket:
            websocket.send(msgpack.packb({"model": model}))
            websocket.recv(WITHIN_S)
            assert websocket.response is not None
            return websocket.response.headers["x-falctl-runner"]

    first = {model: session_of(model) for model in ("a", "b")}
    idle(pair.falctl)
    assert first["a"] != first["b"], "the second model had an empty runner to go to"
    for _ in range(5):
        for model in ("b", "a"):
            assert session_of(model) == first[model]
            idle(pair.falctl)


def test_an_hour_of_idling_is_no_hang_and_no_time_limit(tmp_path: Path) -> None:
    """The limit is short here instead; what the app computes for one message is limited all the same."""
    short = '[runners]\nrequest_timeout = "4s"\nstall_timeout = "30s"\n'
    with calling(TALK, alias="talk", config=short) as calls:
        pid = calls.falctl.life(0).pid
        with calls.fal.realtime(calls.app) as session:
            session.send({"n": 1})
            session.recv()
            beat = calls.falctl.board().runner(0)
            assert beat is not None
            until(
                lambda: (
                    (row := calls.falctl.board().runner(0)) is not None and row.beat_at > beat.beat_at + 8
                ),
                within_s=WITHIN_S,
                what="eight seconds",
            )
            session.send({"n": 2})
            assert (session.recv() or {})["n"] == 4
            assert calls.falctl.life(0).pid == pid
            session.send({"folder": str(tmp_path)})  # works for longer than a request may
            with pytest.raises(RealtimeError, match="1011"):
                session.recv()
        calls.falctl.wait_line(r"cpu0\.killed .*request_timeout")


# --- kills ---------------------------------------------------------------------------------------


def test_a_runner_that_is_killed_ends_its_sessions_and_the_next_go_on(pair: Calling) -> None:
    with pair.fal.ws_connect(pair.app, path="raw") as websocket:
        websocket.send("x")
        websocket.recv()
        runner = in_flight(pair.falctl).index(1)
        os.kill(pair.falctl.life(runner).pid, signal.SIGKILL)
        with pytest.raises(ConnectionClosed) as end:
            websocket.recv()
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1011
        assert "was lost" in end.value.rcvd.reason
    with pair.fal.realtime(pair.app) as session:
        session.send({"n": 1})
        assert (session.recv() or {})["n"] == 2


def test_a_router_that_is_killed_frees_the_slots_of_its_sessions(talk: Calling) -> None:
    with talk.fal.ws_connect(talk.app, path="raw") as one, talk.fal.ws_connect(talk.app, path="raw") as two:
        os.kill(talk.falctl.pids()["router"], signal.SIGKILL)
        for websocket in (one, two):
            with pytest.raises(ConnectionClosed):
                websocket.recv()
    # Both slots were taken: that somebody gets in says that they are free.
    with talk.fal.realtime(talk.app) as session:
        session.send({"n": 1})
        assert (session.recv() or {})["n"] == 2
    idle(talk.falctl)
    assert "DISCONNECTED" in talk.falctl.log


def test_ctrl_c_ends_a_quiet_session_with_1001_and_does_not_wait_for_it() -> None:
    patient = '[runners]\ndrain_timeout = "1h"\n'
    with (
        calling(TALK, alias="talk", config=patient) as calls,
        calls.fal.ws_connect(calls.app, path="raw") as websocket,
    ):
        assert calls.falctl.stop(signal.SIGINT, within_s=WITHIN_S) == 0
        with pytest.raises(ConnectionClosed) as end:
            websocket.recv()
        assert end.value.rcvd is not None
        assert end.value.rcvd.code == 1001


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/run/me/talk", ""])
def test_chunks_arrive_as_they_are_made_and_hints_after_them(
    talk: Calling, tmp_path: Path, prefix: str
) -> None:
    model = f"streamed{prefix.count('/')}"
    body = {"folder": str(tmp_path), "model": model}
    url = f"{talk.falctl.url}{prefix}/stream"
    with httpx.stream("POST", url, json=body, timeout=WITHIN_S, trust_env=False) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert next(lines) == 'data: {"n": 1}'
        (tmp_path / "open").touch()  # only now is the second one made
        assert [line for line in lines if line] == ['data: {"n": 2}']
    assert model in talk.falctl.get("/falctl/status").json["runners"][0]["hints"]


def test_fals_client_streams(talk: Calling, tmp_path: Path) -> None:
    events = []
    for event in talk.fal.stream(talk.app, {"folder": str(tmp_path)}):
        events.append(event)
        (tmp_path / "open").touch()
    assert events == [{"n": 1}, {"n": 2}]


def test_a_client_that_leaves_stops_its_stream(talk: Calling) -> None:
    address = talk.falctl.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=WITHIN_S)
    connection.request("POST", "/run/me/talk/endless", "{}", {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data:")
    response.close()
    connection.close()
    idle(talk.falctl)  # it has no end of its own


# --- the cancel convention -----------------------------------------------------------------------


def test_a_client_that_leaves_has_its_request_cancelled_by_the_apps_own_endpoint(
    talk: Calling, tmp_path: Path
) -> None:
    address = talk.falctl.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=WITHIN_S)
    body = f'{{"folder": "{tmp_path}"}}'
    connection.request("POST", "/run/me/talk/sync", body, {"content-type": "application/json"})
    until((tmp_path / "entered").exists, within_s=WITHIN_S, what="it runs")
    connection.close()
    # A sync endpoint cannot be stopped but by itself: its slot is free because it was told.
    idle(talk.falctl)


def test_a_running_job_is_cancelled_by_the_apps_own_endpoint(talk: Calling, tmp_path: Path) -> None:
    job = talk.fal.submit(talk.app, {"folder": str(tmp_path)}, path="/predict")
    until((tmp_path / "entered").exists, within_s=WITHIN_S, what="it runs")
    job.cancel()
    with pytest.raises(fal_client.FalClientHTTPError) as error:
        job.get()
    assert error.value.status_code == 499
    idle(talk.falctl)


def test_nothing_of_a_token_is_in_the_log(talk: Calling) -> None:
    assert not re.search(r"eyJ[\w-]{10,}", talk.falctl.log)


def test_many_sessions_at_once_wait_for_their_slots(pair: Calling) -> None:
    async def work(client: fal_client.AsyncClient) -> list[Any]:
        async def one(n: int) -> Any:
            async with AsyncExitStack() as stack:
                session = await stack.enter_async_context(client.realtime(pair.app))
                await session.send({"n": n})
                return await session.recv()

        return await asyncio.gather(*(one(n) for n in range(12)))

    assert [told["n"] for told in pair.run_async(work)] == [2 * n for n in range(12)]
    idle(pair.falctl)
