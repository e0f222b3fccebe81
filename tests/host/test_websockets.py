"""A websocket of a falctl.App; what is the same for a fal.App is tested on one, in tests/compat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

from falctl.errors import EXIT_CARD_BROKEN
from falctl.wire import HintsChanged
from tests.host.harness import STEP_S, Host, executing, idle
from tests.wait import until

pytestmark = pytest.mark.process


@contextmanager
def talking(host: Host, name: str = "you", path: str = "/talk") -> Iterator[ClientConnection]:
    with unix_connect(
        host.spec.socket,
        f"ws://host{path}?name={name}",
        additional_headers={"X-Fal-Request-Id": name},
        open_timeout=STEP_S,
        close_timeout=STEP_S,
    ) as websocket:
        yield websocket


def say(websocket: ClientConnection, word: str) -> str:
    websocket.send(word)
    return str(websocket.recv(STEP_S))


@pytest.fixture
def talks() -> Iterator[Host]:
    with Host("tests/host/websocket_app.py::Talks") as host:
        yield host


def test_an_async_endpoint_with_a_websocket_is_one(talks: Host) -> None:
    with talking(talks) as websocket:
        assert say(websocket, "hello") == "hello, you"
    idle(talks)
    assert talks.post("/").json == "not a websocket"
    assert talks.post("/talk?name=you").status == 404


def test_its_hints_are_known_while_it_goes_on(talks: Host) -> None:
    with talks.events() as events, talking(talks) as websocket:
        say(websocket, "learn")
        beat = talks.row.beat_at
        until(lambda: talks.row.beat_at > beat + 2, within_s=STEP_S, what="the pause between two questions")
        say(websocket, "hello")
        events.until(HintsChanged)
        assert "you" in (talks.row.hints or ())


def test_its_steps_are_those_of_one_message(talks: Host) -> None:
    with talking(talks) as websocket:
        say(websocket, "steps")
        beat = talks.row.beat_at
        until(lambda: talks.row.beat_at > beat, within_s=STEP_S, what="another look")
        assert talks.row.executing[0].steps == 0
        assert not talks.row.progress_known, "that no more steps follow is no stall"


def test_an_error_before_it_is_accepted_is_an_answer(talks: Host) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(talks, "nobody"):
        pass
    assert refused.value.response.status_code == 404
    assert json.loads(refused.value.response.body or b"")["detail"] == "nobody of that name"


def test_an_app_that_looks_for_no_end_is_no_error_and_does_not_speak_for_us(talks: Host) -> None:
    with talking(talks, path="/careless") as websocket:
        assert websocket.response is not None
        assert websocket.response.headers["x-app"] == "yes"
        assert "x-falctl-runner" not in websocket.response.headers
    idle(talks)
    assert "request.failed" not in talks.output()


@pytest.mark.parametrize(("path", "status"), [("/pretends", 503), ("/unsendable", 500)])
def test_an_answer_in_its_place_is_held_to_the_same(talks: Host, path: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(talks, path=path):
        pass
    assert refused.value.response.status_code == status
    assert "x-falctl-bounced" not in refused.value.response.headers
    assert "x-injected" not in refused.value.response.headers
    idle(talks)


def test_a_broken_card_ends_the_process(talks: Host) -> None:
    with talking(talks) as websocket:
        websocket.send("break")
        with pytest.raises(ConnectionClosed):
            websocket.recv(STEP_S)
        assert (websocket.close_code, websocket.close_reason) == (1011, "The GPU failed; its runner restarts")
    assert talks.process.wait(timeout=STEP_S) == EXIT_CARD_BROKEN


def test_a_host_that_stops_ends_it(talks: Host) -> None:
    with talking(talks) as websocket:
        websocket.send("sleep")
        executing(talks, "you")
        assert talks.stop() == 0
        with pytest.raises(ConnectionClosed):
            websocket.recv(STEP_S)
