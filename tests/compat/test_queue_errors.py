"""What fal's own Python client makes of everything that can become of a queued job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fal_client
import fal_client.client
import pytest
from fal_client.client import FalClientHTTPError
from starlette.types import Send

from falctl.redirect import sitecustomize
from tests.router.client import ask
from tests.router.fake_host import Gate, Handler, Seen, answer
from tests.router.harness import Setup, left_idle, serving
from tests.router.queue_calls import becomes, breaks, saying

APP = "owner/app"
NO_RETRY = {"X-Fal-No-Retry": "1"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


@pytest.fixture
def setup(shared: Setup) -> Iterator[Setup]:
    with left_idle(shared) as setup:
        yield setup


@pytest.fixture
def fal(shared: Setup, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    for name, address in sitecustomize.addresses(f"http://127.0.0.1:{shared.port}").items():
        monkeypatch.setattr(fal_client.client, name, address)
    client = fal_client.SyncClient(key="local:local")
    yield client
    if (used := vars(client).get("_client")) is not None:
        used.close()


def failure(handle: fal_client.SyncRequestHandle) -> FalClientHTTPError:
    with pytest.raises(FalClientHTTPError) as raised:
        handle.get(interval=0.05)
    return raised.value


@pytest.mark.parametrize(
    ("handler", "status", "message", "error_type", "told"),
    [
        (
            saying(422, b'{"detail": [{"loc": ["body", "n"], "msg": "no", "type": "value_error"}]}'),
            422,
            [{"loc": ["body", "n"], "msg": "no", "type": "value_error"}],
            None,
            None,
        ),
        (saying(400, b'{"detail": "no"}'), 400, "no", None, None),
        (saying(500, b"not JSON"), 500, "not JSON", None, "runner_server_error"),
        (
            saying(500, b'{"detail": "Oh"}', (b"x-fal-error-type", b"runner_server_error")),
            500,
            "Oh",
            "runner_server_error",
            "runner_server_error",
        ),
        (saying(503, b'{"detail": "GPU error"}'), 503, "GPU error", None, "runner_server_error"),
        (
            breaks,
            502,
            "runner incomplete response",
            "runner_incomplete_response",
            "runner_incomplete_response",
        ),
    ],
    ids=["422", "400", "500 as text", "500 with a type", "503", "broken off"],
)
def test_a_failure_is_what_the_app_or_the_platform_says(
    setup: Setup,
    fal: fal_client.SyncClient,
    handler: Handler,
    status: int,
    message: Any,
    error_type: str | None,
    told: str | None,
) -> None:
    setup.hosts[0].handler = handler
    handle = fal.submit(APP, {}, headers=NO_RETRY)
    error = failure(handle)
    assert (error.status_code, error.message, error.error_type) == (status, message, error_type)
    assert error.response_headers["x-fal-request-id"] == handle.request_id
    done = handle.status(with_logs=True)
    assert isinstance(done, fal_client.Completed)
    assert done.error
    assert (done.error_type, done.logs) == (told, [])
    assert done.metrics["inference_time"] >= 0


def test_billing_and_an_apps_own_headers_pass_and_its_words_to_the_platform_do_not(
    setup: Setup, fal: fal_client.SyncClient
) -> None:
    headers = (
        (b"x-fal-billable-units", b"0"),
        (b"x-own", b"1"),
        (b"x-fal-needs-retry", b"0"),
        (b"x-fal-stop-runner", b"false"),
        (b"x-fal-runner-health-check", b"1"),
    )
    setup.hosts[0].handler = saying(503, b'{"detail": "no"}', *headers)
    told = failure(fal.submit(APP, {})).response_headers
    assert (told["x-fal-billable-units"], told["x-own"]) == ("0", "1")
    assert not {"x-fal-needs-retry", "x-fal-stop-runner", "x-fal-runner-health-check"} & set(told)


def test_a_start_that_comes_too_late_is_the_users_timeout(setup: Setup, fal: fal_client.SyncClient) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    becomes(setup, fal.submit(APP, {}).request_id, "IN_PROGRESS")
    late = fal.submit(APP, {}, start_timeout=1.1)
    error = failure(late)
    gate.opened.set()
    assert (error.status_code, error.error_type) == (504, "request_timeout")
    assert error.response_headers["x-fal-error-type"] == "request_timeout"
    assert error.response_headers["x-fal-request-timeout-type"] == "user"
    done = late.status()
    assert isinstance(done, fal_client.Completed)
    assert (done.error, done.error_type, done.metrics) == ("request timeout", "request_timeout", {})


def test_a_lost_runner_is_not_the_users_timeout(setup: Setup, fal: fal_client.SyncClient) -> None:
    async def vanish(seen: Seen, send: Send) -> None:
        msg = "the app fails before its answer begins"
        raise ConnectionError(msg)

    setup.hosts[0].handler = vanish
    error = failure(fal.submit(APP, {}, headers=NO_RETRY))
    assert error.status_code >= 500
    assert "x-fal-request-timeout-type" not in error.response_headers


def test_what_was_cancelled_fails_as_that(setup: Setup, fal: fal_client.SyncClient) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    becomes(setup, fal.submit(APP, {}).request_id, "IN_PROGRESS")
    waiting = fal.submit(APP, {})
    waiting.cancel()
    gate.opened.set()
    error = failure(waiting)
    assert (error.status_code, error.error_type) == (499, "client_cancelled")
    assert error.message == "the request was cancelled"
    with pytest.raises(FalClientHTTPError) as again:
        waiting.cancel()
    assert again.value.status_code == 400
    assert json.loads(again.value.response.content) == {"status": "ALREADY_COMPLETED"}


@pytest.mark.parametrize("what", ["status", "result", "cancel"])
def test_a_request_that_nobody_knows_is_not_found(fal: fal_client.SyncClient, what: str) -> None:
    with pytest.raises(FalClientHTTPError) as raised:
        getattr(fal, what)(APP, "nobody-knows")
    error = raised.value
    assert (error.status_code, error.error_type) == (404, "not_found")
    assert "nobody-knows" in error.message
    assert error.response_headers["x-fal-error-type"] == "not_found"


def test_a_webhook_that_is_none_is_a_bad_request(fal: fal_client.SyncClient) -> None:
    with pytest.raises(FalClientHTTPError) as raised:
        fal.submit(APP, {}, webhook_url="nonsense")
    assert (raised.value.status_code, raised.value.error_type) == (400, "bad_request")
    assert "'nonsense'" in raised.value.message


def test_head_is_get_without_its_body_and_options_tells_the_methods(setup: Setup) -> None:
    async def told(_: Seen, send: Send) -> None:
        await answer(send, b'{"n": 1}', headers=((b"content-type", b"application/json"),))

    setup.hosts[0].handler = told
    request = ask(setup, path=f"/queue/{APP}", body=b"{}").json()["request_id"]
    becomes(setup, request, "COMPLETED")
    base = f"/queue/{APP}/requests/{request}"
    for path in (base, f"{base}/response", f"{base}/status"):
        head, get = ask(setup, "HEAD", path), ask(setup, "GET", path)
        assert (head.status, head.body) == (get.status, b"")
        assert head.value("content-length") == get.value("content-length") == str(len(get.body))
        assert head.value("content-type") == get.value("content-type") == "application/json"
    allowed = {
        base: "GET, HEAD, OPTIONS",
        f"{base}/status": "GET, HEAD, OPTIONS",
        f"{base}/status/stream": "GET, HEAD, OPTIONS",
        f"{base}/cancel": "PUT, OPTIONS",
        f"/queue/{APP}/any/path": "POST, OPTIONS",
    }
    for path, methods in allowed.items():
        options = ask(setup, "OPTIONS", path)
        assert (options.status, options.body, options.value("allow")) == (204, b"", methods)
        refused = ask(setup, "DELETE", path)
        assert (refused.status, refused.value("allow")) == (405, methods)
        assert refused.json()["error_type"] == "method_not_allowed"
