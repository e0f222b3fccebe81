"""A fal.App's websockets in our host, without a router: its slots, its threads, its hints, and how they end."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from falctl.errors import EXIT_CARD_BROKEN
from falctl.wire import CANCEL_PATH, EXIT_RETIRED, Ending, Released
from tests.compat.sockets import closed, say, talking
from tests.host.harness import STEP_S, Host, executing, idle
from tests.wait import until

pytestmark = pytest.mark.process

APP = "tests/compat/fal_sockets_app.py::Talk"


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    with Host(APP) as host:
        yield host


@pytest.fixture
def talk(shared: Host) -> Iterator[Host]:
    yield shared
    idle(shared)


@pytest.fixture
def fresh() -> Iterator[Host]:
    with Host(APP) as host:
        yield host


def test_realtime_runs_on_the_apps_threads_and_its_hints_are_known_when_it_ends(talk: Host) -> None:
    with talk.events() as events:
        with talking(talk, "/realtime", "session-1") as websocket:
            told = say(websocket, model="m", n=21)
            assert told["n"] == 42
            assert told["thread"].startswith("app")
            executing(talk, "session-1")
        released = events.until(Released)
        assert (released.request, released.exec_s, released.load_s) == ("session-1", None, None)
        assert "m" in (talk.row.hints or ())


def test_all_modes_of_realtime(talk: Host) -> None:
    with talking(talk, "/counts") as websocket:
        websocket.send(msgpack.packb({"n": 3}))
        told = [msgpack.unpackb(websocket.recv(STEP_S)) for _ in range(3)]
        assert [each["n"] for each in told] == [0, 1, 2]
        assert all(each["thread"].startswith("app") for each in told)
    with talking(talk, "/sums") as websocket:
        assert [say(websocket, n=n)["n"] for n in (1, 2, 3)] == [1, 3, 6]


def test_an_error_of_realtime_is_told_as_fal_tells_it(talk: Host) -> None:
    with talking(talk, "/realtime") as websocket:
        error = say(websocket, n=-1)
        assert (error["type"], error["error"]) == ("x-fal-error", "INTERNAL_ERROR")
        assert closed(websocket)[0] == 1000


def test_a_raw_websocket_gets_what_was_sent_and_chooses_its_subprotocol(talk: Host) -> None:
    chosen = [Subprotocol("first"), Subprotocol("second")]
    with talking(
        talk, "/raw?a=%20b", "r-7", subprotocols=chosen, headers={"X-Falctl-Hint": '"m"'}
    ) as websocket:
        assert websocket.subprotocol == "first"
        assert websocket.response is not None
        assert websocket.response.headers["x-app"] == "talk"
        assert "x-fal-runner-hints" in websocket.response.headers
        websocket.send("headers")
        seen = json.loads(websocket.recv(STEP_S))
        assert seen["x-fal-request-id"] == "r-7"
        assert "x-falctl-hint" not in seen
        assert seen["query"] == "a=+b"
        websocket.send(b"\x00\xff")
        assert websocket.recv(STEP_S) == b"\x00\xff"
        big = "x" * (20 << 20)  # over every library's default
        websocket.send(big)
        assert websocket.recv(STEP_S) == big


def test_headers_may_be_longer_than_a_websocket_library_allows(talk: Host) -> None:
    long = "x" * 20_000
    with talking(talk, "/raw", headers={"X-Long": long, **{f"X-{i}": "y" for i in range(200)}}) as websocket:
        websocket.send("headers")
        assert json.loads(websocket.recv(STEP_S))["x-long"] == long


@pytest.mark.parametrize(
    ("word", "code", "reason"),
    [("close", 4001, "as you wish"), ("return", 1000, ""), ("bug", 1011, "Internal Server Error")],
)
def test_how_the_app_ends_it_is_how_it_ends(talk: Host, word: str, code: int, reason: str) -> None:
    with talking(talk, "/raw") as websocket:
        websocket.send(word)
        assert closed(websocket) == (code, reason)
        # The slot was free before the close left, so whoever sees it may come back at once.
        assert not talk.row.executing


def test_the_app_hears_how_the_client_ended_it(talk: Host) -> None:
    with talking(talk, "/raw", "leaver") as websocket:
        executing(talk, "leaver")
        websocket.close(4321, "gone fishing")
    idle(talk)
    until(lambda: "DISCONNECTED 4321 gone fishing" in talk.output(), within_s=STEP_S, what="it heard")


@pytest.mark.parametrize("path", ["/refuses", "/nowhere", "/predict"])
def test_what_is_not_accepted_is_an_answer(talk: Host, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(talk, path):
        pass
    response = refused.value.response
    assert response.status_code == 403
    assert "did not accept this websocket" in json.loads(response.body or b"")["detail"]


def test_an_upload_policy_is_refused(talk: Host) -> None:
    with (
        pytest.raises(InvalidStatus) as refused,
        talking(talk, "/raw", headers={"X-App-Fal-Upload-Policy": "{}"}),
    ):
        pass
    assert refused.value.response.status_code == 400


def test_it_holds_a_slot_and_what_is_over_is_bounced(talk: Host) -> None:
    with talking(talk, "/raw", "one"), talking(talk, "/raw", "two"):
        assert {e.request for e in talk.row.executing} == {"one", "two"}
        with pytest.raises(InvalidStatus) as bounced, talking(talk, "/raw", "three"):
            pass
        assert bounced.value.response.headers["x-falctl-bounced"] == "1"
        assert talk.post("/predict").headers["x-falctl-bounced"] == "1"


def test_an_idle_websocket_is_no_hung_request_and_a_computing_one_is_timed(
    talk: Host, tmp_path: Path
) -> None:
    with talking(talk, "/realtime", "idler") as websocket:
        executing(talk, "idler")
        since = talk.row.executing[0].started_at
        until(lambda: talk.row.executing[0].started_at > since, within_s=STEP_S, what="it is not timed")
        websocket.send(msgpack.packb({"folder": str(tmp_path)}))
        until((tmp_path / "entered").exists, within_s=STEP_S, what="it computes")
        beat = talk.row.beat_at
        until(lambda: talk.row.beat_at > beat + 1, within_s=STEP_S, what="a beat later")
        began = talk.row.executing[0].started_at
        beat = talk.row.beat_at
        until(lambda: talk.row.beat_at > beat, within_s=STEP_S, what="another beat")
        assert talk.row.executing[0].started_at == began
        (tmp_path / "open").touch()
        assert msgpack.unpackb(websocket.recv(STEP_S))["n"] == 0


def test_an_app_that_does_not_hear_that_its_client_is_gone_is_cancelled(talk: Host) -> None:
    with talking(talk, "/raw", "deaf") as websocket:
        websocket.send("deaf")
        executing(talk, "deaf")
        websocket.close()
    assert talk.post(CANCEL_PATH + "deaf").status == 202
    idle(talk)


def test_an_app_that_does_not_look_is_cancelled_when_the_router_is_gone(talk: Host) -> None:
    with talking(talk, "/raw", "deaf") as websocket:
        websocket.send("deaf")
        executing(talk, "deaf")
        websocket.socket.shutdown(socket.SHUT_RDWR)
    idle(talk)


def test_out_of_memory_ends_the_runner(fresh: Host) -> None:
    with talking(fresh, "/raw") as websocket:
        websocket.send("oom")
        assert closed(websocket) == (1011, "Out of memory")
    assert fresh.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_a_broken_card_ends_the_process_though_the_sdk_tells_the_client_alone(fresh: Host) -> None:
    with talking(fresh, "/realtime") as websocket:
        assert say(websocket, n=-2)["error"] == "INTERNAL_ERROR"
    assert fresh.process.wait(timeout=STEP_S) == EXIT_CARD_BROKEN


def test_when_its_runner_goes_it_is_closed_once_it_is_quiet(fresh: Host, tmp_path: Path) -> None:
    with talking(fresh, "/realtime", "quiet") as quiet, talking(fresh, "/realtime", "busy") as busy:
        busy.send(msgpack.packb({"folder": str(tmp_path), "n": 4}))
        until((tmp_path / "entered").exists, within_s=STEP_S, what="it computes")
        fresh.send(Ending())
        assert closed(quiet) == (1001, "this runner goes away")
        until(lambda: [e.request for e in fresh.row.executing] == ["busy"], within_s=STEP_S, what="one left")
        (tmp_path / "open").touch()
        assert msgpack.unpackb(busy.recv(STEP_S))["n"] == 8
        assert closed(busy) == (1001, "this runner goes away")


def test_at_the_end_what_still_talks_is_told(fresh: Host) -> None:
    with talking(fresh, "/raw") as websocket:
        websocket.send("deaf")
        executing(fresh, "r-1")
        assert fresh.stop() == 0
        assert closed(websocket)[0] in (1001, 1011)


# --- the cancel convention -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "detail"),
    [("/predict", "cancelled by its own convention"), ("/sync", "a thread can be told, too")],
)
def test_an_app_cancels_its_own_requests(talk: Host, tmp_path: Path, path: str, detail: str) -> None:
    later = talk.later(path, {"folder": str(tmp_path)}, {"X-Fal-Request-Id": "mine"})
    until((tmp_path / "entered").exists, within_s=STEP_S, what="it runs")
    with talking(talk, "/raw", "takes the last slot"):
        assert talk.post(CANCEL_PATH + "mine").status == 202
        reply = later.reply()
    assert (reply.status, reply.json["detail"]) == (499, detail)


def test_what_its_app_does_not_end_is_ended_all_the_same(talk: Host, tmp_path: Path) -> None:
    later = talk.later("/deaf", {"folder": str(tmp_path)}, {"X-Fal-Request-Id": "deaf"})
    until((tmp_path / "entered").exists, within_s=STEP_S, what="it runs")
    assert talk.post(CANCEL_PATH + "deaf").status == 202
    assert later.reply().status == 499
    assert "request.cancel_failed request=deaf path=/deaf/cancel: 500" in talk.output()
