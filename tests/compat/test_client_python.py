"""fal's own Python client, sync and async, does here what it does in the cloud: each call, each answer, each error."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fal_client
import pytest
from fal_client import Completed, FalClientHTTPError, InProgress, Queued

from tests.compat.clients import WITHIN_S, Calling, calling
from tests.wait import until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def c() -> Iterator[Calling]:
    with calling() as one:
        yield one


@contextmanager
def busy(c: Calling, folder: Path) -> Iterator[None]:
    """Let the one runner work on something until the block ends."""
    begun, gate = folder / "busy", folder / "gate"
    handle = c.fal.submit(c.app, {"prompt": "busy", "touch": str(begun), "until": str(gate)})
    until(begun.exists, within_s=WITHIN_S, what="the runner is busy")
    try:
        yield
    finally:
        gate.touch()
        handle.get()


def ends(handle: fal_client.SyncRequestHandle) -> Completed:
    """Return the last status of a request."""
    (*_, last) = handle.iter_events(interval=0.02)
    assert isinstance(last, Completed)
    return last


# --- direct ----------------------------------------------------------------------------------------


def test_run(c: Calling) -> None:
    answer = c.fal.run(c.app, {"prompt": "x"}, hint="m", start_timeout=30)
    assert (answer["prompt"], answer["hint"]) == ("x", "m")
    assert answer["request_id"]


def test_run_of_a_path_below_the_app(c: Calling) -> None:
    for app, path in ((c.app, "/sub/path"), (c.app, "sub/path"), (f"{c.app}/sub/path", "")):
        assert c.fal.run(app, {"prompt": "x"}, path=path)["sub"] == "x"


def test_what_is_not_valid_is_told_field_by_field(c: Calling) -> None:
    for call in (c.fal.run, c.fal.subscribe):
        with pytest.raises(FalClientHTTPError) as caught:
            call(c.app, {"count": -1, "prompt": "x"})
        assert caught.value.status_code == 422
        (problem,) = caught.value.response.json()["detail"]
        assert (problem["loc"], problem["type"]) == (["body", "count"], "greater_than_equal")


def test_an_error_of_the_app_is_its_own(c: Calling) -> None:
    for call in (c.fal.run, c.fal.subscribe):
        with pytest.raises(FalClientHTTPError) as caught:
            call(c.app, {"prompt": "x", "status": 418})
        assert (caught.value.status_code, caught.value.message) == (418, "as it was asked for")


def test_a_stream_comes_event_by_event(c: Calling, tmp_path: Path) -> None:
    assert list(c.fal.stream(c.app, {"prompt": "x"})) == [{"i": i, "prompt": "x"} for i in range(3)]
    gate = tmp_path / "gate"
    stream = iter(c.fal.stream(c.app, {"prompt": "x", "until": str(gate)}, path="/slow-stream"))
    assert next(stream) == {"i": 0}  # before the app has said the rest
    gate.touch()
    assert list(stream) == [{"i": 1}]


# --- queued ----------------------------------------------------------------------------------------


def test_subscribe_tells_of_the_place_in_the_queue_the_work_and_the_end(c: Calling, tmp_path: Path) -> None:
    seen: list[Any] = []
    enqueued: list[str] = []

    def update(status: Any) -> None:
        if not seen:
            (tmp_path / "gate").touch()
        seen.append(status)

    with busy(c, tmp_path):
        before = c.fal.submit(c.app, {"prompt": "before"})
        answer = c.fal.subscribe(
            c.app,
            {"prompt": "x"},
            with_logs=True,
            on_enqueue=enqueued.append,
            on_queue_update=update,
            hint="m",
        )
        before.get()
    assert (answer["prompt"], answer["hint"], answer["request_id"]) == ("x", "m", enqueued[0])
    assert seen[0] == Queued(position=1)
    assert isinstance(seen[-1], Completed)
    assert seen[-1].metrics["inference_time"] >= 0
    assert [line["message"] for line in seen[-1].logs] == ["begins x", "ends x"]


def test_a_handle_made_of_an_id_is_as_good(c: Calling, tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    one = c.fal.submit(c.app, {"prompt": "x", "touch": str(begun), "until": str(gate)})
    until(begun.exists, within_s=WITHIN_S, what="it has begun")
    handle = c.fal.get_handle(c.app, one.request_id)
    assert isinstance(handle.status(with_logs=True), InProgress)
    assert isinstance(c.fal.status(c.app, one.request_id), InProgress)
    gate.touch()
    assert handle.get()["prompt"] == "x"
    assert c.fal.result(c.app, one.request_id)["prompt"] == "x"


def test_a_queued_request_that_is_cancelled_is_never_begun(c: Calling, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with busy(c, tmp_path):
        handle = c.fal.submit(c.app, {"prompt": "x", "touch": str(begun)})
        handle.cancel()
        until(lambda: isinstance(handle.status(), Completed), within_s=WITHIN_S, what="it is cancelled")
    assert handle.status().error
    with pytest.raises(FalClientHTTPError) as caught:
        handle.get()
    assert caught.value.status_code == 499
    assert not begun.exists()
    with pytest.raises(FalClientHTTPError) as caught:
        handle.cancel()
    assert (caught.value.status_code, caught.value.response.json()["status"]) == (400, "ALREADY_COMPLETED")


def test_a_running_request_that_is_cancelled_gives_its_place_back(c: Calling, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    handle = c.fal.submit(c.app, {"prompt": "x", "touch": str(begun), "until": str(tmp_path / "never")})
    until(begun.exists, within_s=WITHIN_S, what="it has begun")
    handle.cancel()
    assert ends(handle).error
    assert c.fal.run(c.app, {"prompt": "next"})["prompt"] == "next"


def test_a_client_that_waits_no_longer_cancels(c: Calling, tmp_path: Path) -> None:
    begun, ids = tmp_path / "begun", list[str]()
    with pytest.raises(fal_client.FalClientTimeoutError):
        c.fal.subscribe(
            c.app,
            {"prompt": "x", "touch": str(begun), "until": str(tmp_path / "never")},
            client_timeout=4,
            on_enqueue=ids.append,
        )
    handle = c.fal.get_handle(c.app, ids[0])
    until(lambda: isinstance(handle.status(), Completed), within_s=WITHIN_S, what="it is cancelled")


def test_priorities(c: Calling, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("low", "normal")]
    with busy(c, tmp_path):
        handles = [
            c.fal.submit(c.app, {"prompt": "x", "touch": str(file)}, priority=priority)
            for file, priority in zip(files, ("low", "normal"), strict=True)
        ]
    for handle in handles:
        handle.get()
    low, normal = (file.stat().st_mtime_ns for file in files)
    assert normal < low


def test_a_start_timeout_ends_what_has_not_begun(c: Calling, tmp_path: Path) -> None:
    with busy(c, tmp_path):
        handle = c.fal.submit(c.app, {"prompt": "late"}, start_timeout=1.1)
        assert ends(handle).error_type == "request_timeout"
        for call in (handle.get, lambda: c.fal.run(c.app, {"prompt": "late"}, start_timeout=1.1)):
            with pytest.raises(FalClientHTTPError) as caught:
                call()
            assert (caught.value.status_code, caught.value.error_type) == (504, "request_timeout")


def test_a_full_queue_is_told(c: Calling, tmp_path: Path) -> None:
    with busy(c, tmp_path):
        waiting = [c.fal.submit(c.app, {"prompt": "x"}) for _ in range(2)]
        reply = c.http("POST", f"/queue/{c.app}?fal_max_queue_length=1", json={"prompt": "x"})
        assert (reply.status_code, reply.headers["x-fal-needs-retry"]) == (429, "1")
    for handle in waiting:
        handle.get()


def test_what_is_not_there_is_404(c: Calling) -> None:
    with pytest.raises(FalClientHTTPError) as caught:
        c.fal.status(c.app, "no-such-request")
    assert caught.value.status_code == 404


# --- retries: a 503 ends the runner, so they come last ------------------------------------------


def test_a_503_is_tried_again_unless_the_client_says_no(tmp_path: Path) -> None:
    with calling(config='[runners]\nrestarts_max = 100\nbackoff_min = "100ms"\n') as c:
        failed = tmp_path / "failed"
        assert c.fal.subscribe(c.app, {"prompt": "x", "fail_unless": str(failed)})["prompt"] == "x"
        assert failed.exists()
        handle = c.fal.submit(
            c.app, {"prompt": "x", "fail_unless": str(tmp_path / "again")}, headers={"X-Fal-No-Retry": "1"}
        )
        with pytest.raises(FalClientHTTPError) as caught:
            handle.get()
        assert (caught.value.status_code, caught.value.message) == (503, "not this time")


# --- hints -----------------------------------------------------------------------------------------


def test_the_same_model_stays_on_the_same_runner() -> None:
    order = ["m0", "m1", "m2"] * 6
    random.Random(4).shuffle(order)
    with calling(args=("--runners", "2")) as c:
        runners = defaultdict[str, set[int]](set)
        for model in order:
            arguments = {"prompt": "x", "model": model}
            calls = (c.fal.run, c.fal.subscribe)
            runners[model].add(calls[len(runners) % 2](c.app, arguments, hint=model)["runner"])
    assert [len(found) for found in runners.values()] == [1, 1, 1]


# --- the same without blocking ---------------------------------------------------------------------


def test_every_call_of_the_async_client(c: Calling, tmp_path: Path) -> None:
    async def work(client: fal_client.AsyncClient) -> list[Any]:
        seen: list[str] = []
        answers = [
            (await client.run(c.app, {"prompt": "run"}, hint="m"))["hint"],
            [event["i"] async for event in client.stream(c.app, {"prompt": "x"})],
            (
                await client.subscribe(
                    c.app, {"prompt": "sub"}, on_queue_update=lambda s: seen.append(type(s).__name__)
                )
            )["prompt"],
        ]
        handle = await client.submit(c.app, {"prompt": "x", "until": str(tmp_path / "never")}, priority="low")
        answers.append(
            type(await client.status(c.app, handle.request_id)).__name__ in ("Queued", "InProgress")
        )
        await handle.cancel()
        with pytest.raises(FalClientHTTPError):
            await handle.get()
        with pytest.raises(FalClientHTTPError):
            await client.run(c.app, {})
        return [*answers, seen[-1]]

    assert c.run_async(work) == ["m", [0, 1, 2], "sub", True, "Completed"]
