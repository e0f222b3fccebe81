"""What a host answers: the app's results, fal's error bodies, our headers; never a traceback."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from starlette.types import Message, Receive, Scope, Send

from falctl.clock import wall_clock
from falctl.core.lifetimes import ends_at
from falctl.errors import EXIT_CARD_BROKEN
from falctl.host import gate as host_gate
from falctl.host.keeper import Keeper
from falctl.wire import EXIT_RETIRED
from tests.host.conftest import PROBE, Gate
from tests.host.harness import STEP_S, Host, idle

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def quiet() -> Iterator[Host]:
    with Host(f"{PROBE}::Quiet") as host:
        yield host


def test_a_pydantic_model_is_answered_as_json(probe: Host) -> None:
    reply = probe.post("/model")
    assert (reply.status, reply.json) == (200, {"n": 1})


def test_a_response_of_the_app_passes_with_its_headers(probe: Host) -> None:
    reply = probe.post("/text")
    assert (reply.status, reply.body, reply.headers["x-own"]) == (200, b"plain", "1")


def test_an_answer_without_a_body_passes(probe: Host) -> None:
    reply = probe.post("/nothing")
    assert (reply.status, reply.body) == (204, b"")
    assert "x-falctl-timings" in reply.headers


def test_the_headers_by_which_we_speak_to_the_router_are_not_the_apps_to_send(probe: Host) -> None:
    reply = probe.post(
        "/any-answer?status=503", {"X-Falctl-Bounced": "1", "x-falctl-timings": "a=b", "x-own": "1"}
    )
    assert (reply.status, reply.headers["x-own"]) == (503, "1")
    assert [name for name in reply.headers if name.startswith("x-falctl-")] == ["x-falctl-timings"]
    assert reply.timings["cache"] == "none"


def test_an_answer_of_the_host_about_the_app_carries_none_of_them_either() -> None:
    sent: list[Message] = []

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Falctl-Bounced", b"1")]})

    async def keep(message: Message) -> None:
        sent.append(message)

    async def nothing() -> Message:
        raise AssertionError

    keeper = cast("Keeper", SimpleNamespace(hints_header=lambda: b"h"))
    scope = {"type": "http", "method": "GET", "path": "/health", "raw_path": b"/health"}
    asyncio.run(host_gate.Gate(app, app, keeper)(scope, nothing, keep))
    assert [message["headers"] for message in sent] == [[(b"x-fal-runner-hints", b"h")]]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/any-answer?status=199", {}),
        ("/any-answer?status=600", {}),
        ("/any-answer?status=0", {}),
        ("/unsendable-stream", {}),
        ("/any-answer?status=200", {"x-own": "a\r\nset-cookie: b"}),
        ("/any-answer?status=200", {"x-own": "a\0b"}),
        ("/any-answer?status=200", {"x own": "a"}),
        ("/any-answer?status=200", {"": "a"}),
        ("/any-answer?status=200", {"content-length": "many"}),
    ],
)
def test_an_answer_that_breaks_http_is_a_bug_of_the_app(
    probe: Host, path: str, headers: dict[str, str]
) -> None:
    before = probe.output().count("request.failed request=broken: the app answered with the ")
    reply = probe.post(path, headers, {"x-fal-request-id": "broken"})
    assert reply.status == 500
    assert reply.json == {"detail": "Internal Server Error", "error_type": "runner_server_error"}
    assert probe.output().count("request.failed request=broken: the app answered with the ") == before + 1
    idle(probe)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_may_have_no_body_loses_the_body_and_its_length(probe: Host, status: int) -> None:
    reply = probe.post(f"/any-answer?status={status}", {"content-length": "4", "etag": "e"})
    assert (reply.status, reply.headers["etag"], reply.body) == (status, "e", b"")
    assert "content-length" not in reply.headers


def test_a_file_passes(probe: Host) -> None:
    assert b"class Probe(App)" in probe.post("/file").body


def test_what_an_app_stores_is_linked_under_the_routers_url(probe: Host) -> None:
    url = probe.post("/store").json["url"]
    assert url.startswith("http://127.0.0.1:8808/files/")
    assert (probe.files / url.rpartition("/")[2]).read_bytes() == b"stored"


def test_a_file_is_kept_as_long_as_the_request_that_it_is_stored_for_says(probe: Host) -> None:
    def ends_in_s(value: str) -> float:
        url: str = probe.post("/store", {}, {"x-fal-object-lifecycle-preference": value}).json["url"]
        return ends_at(url, otherwise=0.0) - wall_clock().timestamp()

    assert 500 < ends_in_s('{"expiration_duration_seconds": 600}') <= 601
    assert ends_in_s('{"expiration_duration_seconds": null}') == math.inf
    assert ends_in_s("{}") < 0
    assert ends_in_s("what the router would refuse") < 0


def test_bad_input_is_422_with_fastapis_detail_list(probe: Host) -> None:
    reply = probe.post("/held", {"folder": 7})
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "folder"]


def test_a_body_that_is_no_json_is_422(probe: Host) -> None:
    reply = probe.ask("POST", "/held", b"{")
    assert reply.status == 422
    assert reply.json["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize("value", [b"1e999", b"NaN", b'"half \\ud800"', b'{"\\ud800": -Infinity}'])
def test_bad_input_that_json_cannot_say_is_422_too(probe: Host, value: bytes) -> None:
    reply = probe.ask("POST", "/hints", b'{"hints": [], "fail": %s}' % value)
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "fail"]
    assert reply.json["detail"][0]["msg"]


def test_a_body_nested_as_deeply_as_can_just_be_read_is_no_bug_of_the_app(probe: Host) -> None:
    depths = range(940, 1000, 2)  # the last of them are too deep for Python's parser
    replies = [probe.ask("POST", "/hints", b'{"fail": %s%s}' % (b"[" * n, b"]" * n)) for n in depths]
    assert {reply.status for reply in replies} == {400, 422}


@pytest.mark.parametrize("path", ["/boom", "/aboom", "/wrong-output", "/exit", "/aexit", "/stop-iteration"])
def test_a_bug_in_the_app_is_500_and_its_traceback_goes_to_the_log_only(probe: Host, path: str) -> None:
    reply = probe.post(path, headers={"x-fal-request-id": f"bug{path}"})
    assert reply.status == 500
    assert reply.json == {"detail": "Internal Server Error", "error_type": "runner_server_error"}
    assert reply.headers["x-fal-error-type"] == "runner_server_error"
    _, found, after = probe.output().partition(f"request.failed request=bug{path}")
    assert found
    assert "Traceback" in after
    assert after.count("Traceback (most recent call last)") <= 2
    if path in {"/boom", "/aboom"}:
        traceback = after.partition("Traceback")[2].partition("ValueError")[0]
        assert "probe_app.py" in traceback
        assert traceback.count('File "') == 1
    assert probe.post("/model").status == 200


def test_a_deliberate_refusal_has_its_own_status_and_type(probe: Host) -> None:
    reply = probe.post("/refuse")
    assert (reply.status, reply.json) == (418, {"detail": "short and stout", "error_type": "teapot"})
    assert reply.headers["x-fal-error-type"] == "teapot"
    assert reply.headers["retry-after"] == "3"


def test_an_http_exception_is_answered_as_fastapi_does(probe: Host) -> None:
    reply = probe.post("/http-error")
    assert (reply.status, reply.json) == (409, {"detail": {"taken": True}})


@pytest.mark.parametrize("path", ["/oom", "/cublas"])
def test_out_of_memory_is_503_and_where_only_the_app_could_free_some_another_process_takes_its_place(
    path: str,
) -> None:
    with Host(f"{PROBE}::Probe") as host:
        reply = host.post(path)
        assert (reply.status, reply.json) == (
            503,
            {"detail": "Out of memory", "error_type": "runner_server_error"},
        )
        assert "x-falctl-bounced" not in reply.headers
        assert host.process.wait(timeout=STEP_S) == EXIT_RETIRED


def test_an_app_that_gives_no_hints_goes_on_after_it_ran_out_of_memory(quiet: Host) -> None:
    assert quiet.post("/oom").status == 503
    assert quiet.post("/", {}).status == 200


def test_a_broken_card_is_answered_and_ends_the_process() -> None:
    with Host(f"{PROBE}::Probe") as host:
        reply = host.post("/break-card")
        assert (reply.status, reply.json["error_type"]) == (503, "runner_server_error")
        assert host.process.wait(timeout=STEP_S) == EXIT_CARD_BROKEN
        assert host.row.executing == ()
        assert "illegal memory access" in host.output()


def test_what_a_decorated_async_endpoint_returns_is_awaited_on_the_loop(probe: Host) -> None:
    assert probe.post("/wrapped-async").json == "MainThread"


def test_a_stream_that_breaks_has_no_final_chunk(probe: Host) -> None:
    connection = probe.connect()
    connection.request("POST", "/broken-stream", b"{}", {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.readline() == b"first\n"
    with pytest.raises(Exception, match="IncompleteRead"):
        response.read()
    connection.close()


def test_health_openapi_and_docs_are_there_and_get_on_an_endpoint_is_not(probe: Host) -> None:
    health = probe.ask("GET", "/health")
    assert (health.status, health.json) == (200, {"status": "ok"})
    assert "/model" in probe.ask("GET", "/openapi.json").json["paths"]
    assert probe.ask("GET", "/docs").status == 200
    assert probe.ask("GET", "/model").status == 405
    assert probe.post("/nowhere").status == 404
    assert probe.post("/falctl/nowhere").status == 404


@pytest.mark.parametrize(
    "path", ["/%66alctl/events", "//falctl/events", "/falctl%2Fevents", "/./falctl/events"]
)
def test_a_path_that_only_decodes_to_one_of_ours_is_not_ours(probe: Host, path: str) -> None:
    reply = probe.ask("GET", path)
    assert (reply.status, reply.json) == (404, {"detail": "Not Found"})


def test_the_openapi_knows_the_types_of_an_app_with_string_annotations(probe: Host) -> None:
    post = probe.ask("GET", "/openapi.json").json["paths"]["/held"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Gate"
    }


def test_sync_code_runs_on_the_apps_one_thread_and_so_do_its_hints_and_streams(
    probe: Host, gate: Gate
) -> None:
    here = probe.post("/threads").json
    assert here["hints"] == [here["here"]]
    assert here["here"].startswith("app_0")
    gate.open()
    assert probe.post("/sync-stream", gate.body).body.decode().splitlines() == [here["here"], "end"]


def test_the_app_sees_the_clients_headers_and_none_of_ours(probe: Host) -> None:
    sent = {
        "X-Mine": "1",
        "x-fal-request-id": "r1",
        "x-falctl-hint": json.dumps("caf\xe9"),
        "x-falctl-headers": json.dumps([["x-fal-runner-hint", "caf\xe9"], ["x-name", "Ren\xe9"]]),
    }
    seen = [tuple(pair) for pair in probe.post("/headers", headers=sent).json]
    assert ("x-mine", "1") in seen
    assert ("x-fal-request-id", "r1") in seen
    assert ("x-fal-runner-hint", "caf\xe9") in seen
    assert ("x-name", "Ren\xe9") in seen
    assert not [name for name, _ in seen if name.startswith("x-falctl")]


def test_headers_of_more_than_64_kib_pass(probe: Host) -> None:
    long = "x" * 80_000
    assert ["x-long", long] in probe.post("/headers", headers={"X-Long": long}).json


def test_a_large_body_passes(probe: Host) -> None:
    assert probe.ask("POST", "/length", b"x" * 5_000_000).json == 5_000_000


def test_an_app_that_gives_no_hints_sends_no_hints_header(quiet: Host) -> None:
    assert "x-fal-runner-hints" not in quiet.post("/", {}).headers
    assert quiet.row.hints is None


def test_the_timings_say_how_long_the_app_ran(quiet: Host, gate: Gate) -> None:
    under_way = quiet.later("/held", gate.body)
    gate.open()
    timings = under_way.reply().timings
    assert timings["cache"] == "none"
    assert float(timings["load_s"]) == 0
    assert 0 < float(timings["exec_s"]) < 20


def test_an_async_provide_hints_is_named_and_gives_nothing(quiet: Host) -> None:
    with Host(f"{PROBE}::AsyncHints") as host:
        assert host.post("/", {}).headers["x-fal-runner-hints"] == ""
        assert host.row.hints == ()
        assert host.output().count("provide_hints() returned a coroutine") == 1
        assert "never awaited" not in host.output()
