"""A client leaves while a demo model draws for it: the drawing ends within a step, or goes on if it was told to."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.process.harness import Falctl
from tests.wait import until

pytestmark = pytest.mark.process

WITHIN_S = 120.0
STEPS = 500


@pytest.fixture(scope="module")
def one() -> Iterator[Falctl]:
    with Falctl("runners.diffusion:AnyModelRunner", args=("--runners", "1")) as f:
        assert f.post("/", prompt(2)).status == 200  # the model is there
        yield f


def prompt(steps: int, *, images: int = 1) -> dict[str, Any]:
    """Return what to draw: a hundred steps of 16 images take longer than any command."""
    return {
        "model": "digits-ink",
        "prompt": "seven",
        "seed": 7,
        "num_inference_steps": steps,
        "num_images": images,
    }


class Client:
    """Sends a request, and leaves when it is told to."""

    def __init__(self, f: Falctl, name: str, body: dict[str, Any], **headers: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(f.url).netloc, timeout=WITHIN_S)
        fields = {"Content-Type": "application/json", "X-Falctl-Request-Id": name, **headers}
        self._connection.request("POST", "/", json.dumps(body), fields)

    def status(self) -> int:
        response = self._connection.getresponse()
        response.read()
        self.leave()
        return response.status

    def leave(self) -> None:
        self._connection.close()


class Followed:
    """The events of a request, read on a thread."""

    def __init__(self, f: Falctl, name: str, query: str = "") -> None:
        self.events: list[dict[str, Any]] = []
        self._url = (urlsplit(f.url).netloc, f"/falctl/requests/{name}/events{query}")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        until(lambda: self.events, within_s=WITHIN_S, what="its first event")

    def _read(self) -> None:
        connection = http.client.HTTPConnection(self._url[0], timeout=WITHIN_S)
        status = 404
        while status == 404:  # the request may be overtaken by who asks for it
            connection.request("GET", self._url[1])
            response = connection.getresponse()
            if (status := response.status) != 200:
                response.read()
        assert status == 200
        while line := response.readline():
            if line.startswith(b"data: "):
                self.events.append(json.loads(line.removeprefix(b"data: ")))
        connection.close()

    def draws(self) -> None:
        """Return when it is between its first and its last step."""
        until(
            lambda: any(1 < (e.get("step") or 0) < STEPS for e in self.events),
            within_s=WITHIN_S,
            what="it draws",
        )

    def end(self) -> dict[str, Any]:
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive(), "the stream does not end"
        return self.events[-1]

    @property
    def last_step(self) -> int:
        return max(e.get("step") or 0 for e in self.events)


def test_a_client_that_leaves_ends_the_drawing_and_the_model_stays_usable(one: Falctl) -> None:
    client = Client(one, "leaves-it", prompt(STEPS, images=16))
    followed = Followed(one, "leaves-it", "?preview=1")
    followed.draws()
    until(lambda: any("preview" in e for e in followed.events), within_s=WITHIN_S, what="a picture")
    client.leave()
    assert (followed.end()["state"], followed.end()["outcome"]) == ("ended", "cancelled")
    assert followed.last_step < STEPS
    again = one.post("/", prompt(2))
    assert (again.status, again.headers["x-falctl-cache"]) == (200, "hit")


def test_falctl_cancel_ends_a_direct_drawing_and_its_client_is_told(one: Falctl) -> None:
    client, followed = Client(one, "cancelled", prompt(STEPS, images=16)), Followed(one, "cancelled")
    followed.draws()
    told = one.run("cancel", "cancelled")
    assert told.returncode == 0, told.stderr
    assert client.status() == 499
    assert followed.end()["outcome"] == "cancelled"
    assert followed.last_step < STEPS


def test_a_queued_job_is_followed_and_cancelled_like_a_direct_request(one: Falctl) -> None:
    job = one.post("/queue/me/app", prompt(STEPS, images=16)).json["request_id"]
    followed = Followed(one, job)
    followed.draws()
    assert one.put(f"/queue/me/app/requests/{job}/cancel").status == 202
    assert followed.end()["outcome"] == "cancelled"
    assert followed.last_step < STEPS
    assert one.post("/", prompt(2)).headers["x-falctl-cache"] == "hit"


def test_one_that_is_to_finish_goes_on_without_its_client_and_stores_what_it_draws(one: Falctl) -> None:
    files = one.home.files
    before = set(files.iterdir())
    runner = one.pids()["runner0"]
    os.kill(runner, signal.SIGSTOP)  # so that it cannot be over before it is followed
    client = Client(one, "finishes", prompt(100), **{"X-Falctl-On-Disconnect": "finish"})
    followed = Followed(one, "finishes")
    os.kill(runner, signal.SIGCONT)
    followed.draws()
    client.leave()
    assert followed.end() == {
        "request_id": "finishes", "state": "ended", "outcome": "completed", "status": 200,
    }  # fmt: skip
    assert len(set(files.iterdir()) - before) == 1


def test_the_status_view_shows_the_step_of_what_draws(one: Falctl) -> None:
    client, followed = Client(one, "is-shown", prompt(STEPS, images=16)), Followed(one, "is-shown")
    followed.draws()
    assert re.search(r"▸ .+ step +\d+/500", one.run("status", "--once").stdout)
    client.leave()
    followed.end()
