"""The hints of an app reach the header, the board and the verdict as they are after each request."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from falctl.host.head import read_head
from tests.host.conftest import PROBE, Gate
from tests.host.harness import STEP_S, Host, Reply
from tests.wait import until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def cached() -> Iterator[Host]:
    with Host(f"{PROBE}::Cached", config={"cache": {"max_models": 2}}) as host:
        yield host


def wanting(hint: str) -> dict[str, str]:
    return {"x-fal-runner-hint": hint}


def give(host: Host, hints: Any, *, fail: bool = False, headers: dict[str, str] | None = None) -> Reply:
    return host.post("/hints", {"hints": hints, "fail": fail}, headers)


def test_hints_travel_in_their_order_joined_by_commas(probe: Host) -> None:
    assert give(probe, ["b", "a", "b"]).headers["x-fal-runner-hints"] == "b,a"
    assert probe.row.hints == ("b", "a")


def test_no_hints_now_is_an_empty_header_not_an_absent_one(probe: Host) -> None:
    assert give(probe, []).headers["x-fal-runner-hints"] == ""
    assert probe.row.hints == ()


@pytest.mark.parametrize("unusable", ["abc", 7, None, ["a", 7]])
def test_an_unusable_list_leaves_the_last_hints_and_is_logged_once(probe: Host, unusable: object) -> None:
    give(probe, ["kept"])
    for _ in range(3):
        assert give(probe, unusable).headers["x-fal-runner-hints"] == "kept"
    assert probe.row.hints == ("kept",)
    lines = [line for line in probe.output().splitlines() if "hints.faulty" in line]
    assert len(lines) == len(set(lines))


def test_hints_that_raise_leave_the_last_ones_and_never_fail_the_request(probe: Host) -> None:
    give(probe, ["kept"])
    reply = give(probe, [], fail=True)
    assert (reply.status, reply.headers["x-fal-runner-hints"]) == (200, "kept")
    give(probe, [])
    assert probe.output().count("provide_hints() raised LookupError: no hints today (") == 1
    assert "probe_app.py:" in probe.output()


def test_faulty_hints_are_dropped_and_the_answer_arrives(probe: Host) -> None:
    reply = give(probe, ["ok", "a,b", "evil\r\nSet-Cookie: x=1", " blank", "m\u0151", "", "x" * 2000])
    assert reply.headers["x-fal-runner-hints"] == "ok"
    assert "set-cookie" not in reply.headers
    assert "evil" in probe.output()


def test_a_hint_with_byte_e9_goes_out_as_that_byte_and_comes_in_as_the_same_string(probe: Host) -> None:
    give(probe, ["caf\xe9"])
    connection = probe.connect()
    connection.request("POST", "/model", b"{}", {"x-fal-runner-hint": b"caf\xe9"})
    response = connection.getresponse()
    assert response.headers["x-fal-runner-hints"] == "caf\xe9"  # http.client decodes latin-1
    assert "cache=hit" in response.headers["x-falctl-timings"]
    connection.close()


def test_a_thousand_long_hints_leave_as_many_as_60_kib_hold(probe: Host) -> None:
    monster = [f"{n:04}" + "x" * 200 for n in range(1000)]
    connection = probe.connect()
    body = json.dumps({"hints": monster}).encode()
    limit, http.client._MAXLINE = http.client._MAXLINE, 1 << 17  # type: ignore[attr-defined]
    try:
        connection.request("POST", "/hints", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        header = response.headers["x-fal-runner-hints"]
    finally:
        http.client._MAXLINE = limit  # type: ignore[attr-defined]
    assert 60_000 < len(header) <= 60 * 1024
    assert header.split(",") == monster[: len(header.split(","))]
    connection.close()
    give(probe, [])


def test_health_tells_the_hints_too(probe: Host) -> None:
    give(probe, ["h"])
    assert probe.ask("GET", "/health").headers["x-fal-runner-hints"] == "h"


def test_a_stream_tells_the_hints_at_its_head_and_the_board_those_at_its_end(probe: Host) -> None:
    reply = probe.post("/growing")
    assert reply.headers["x-fal-runner-hints"] == "at the head"
    assert probe.row.hints == ("at the end",)


def test_an_app_without_a_cache_hits_when_the_hint_was_published_before(probe: Host) -> None:
    give(probe, [])
    loads = probe.row.loads
    assert give(probe, ["m"], headers=wanting("m")).timings["cache"] == "disk"
    assert probe.row.loads == loads + 1
    assert probe.post("/model", headers=wanting("m")).timings["cache"] == "hit"
    assert probe.post("/model", headers=wanting("other")).timings["cache"] == "none"
    assert probe.post("/model").timings["cache"] == "none"
    assert probe.row.loads == loads + 1


def test_of_several_hint_headers_the_first_counts_as_it_does_for_the_router() -> None:
    head = read_head([(b"x-fal-runner-hint", b"first"), (b"x-fal-runner-hint", b"last")])
    assert head.hint == "first"
    assert len(head.headers) == 2


def test_the_hint_that_the_router_took_from_the_body_counts_as_the_header_does(
    probe: Host, gate: Gate
) -> None:
    give(probe, ["caf\xe9"])
    reply = probe.post("/model", headers={"x-falctl-hint": json.dumps("caf\xe9")})
    assert reply.timings["cache"] == "hit"
    running = probe.later("/held", gate.body, {"x-falctl-hint": '"m"', "x-fal-request-id": "r"})
    until(lambda: gate.has("entered"), within_s=STEP_S, what="entered")
    assert [(e.request, e.hint) for e in probe.row.executing] == [("r", "m")]
    gate.open()
    running.reply()


def test_a_lease_says_hit_or_disk_whatever_the_hint_was(cached: Host) -> None:
    assert cached.post("/lease", {"model": "one"}).timings["cache"] == "disk"
    assert cached.post("/lease", {"model": "one"}, wanting("other")).timings["cache"] == "hit"
    assert cached.post("/idle", headers=wanting("one")).timings["cache"] == "none"


def test_the_board_shows_the_models_and_their_loads(cached: Host) -> None:
    loads = cached.row.loads
    for name in ("first", "second", "third"):
        cached.post("/lease", {"model": name})
    row = cached.row
    assert row.hints == ("third", "second")
    assert [(m.name, m.state) for m in row.models] == [("third", "ready"), ("second", "ready")]
    assert row.loads == loads + 3


def test_a_change_of_the_cache_is_published_while_the_request_runs(cached: Host, gate: Gate) -> None:
    running = cached.later("/lease", {"model": "early", **gate.body})
    until(lambda: gate.has("entered"), within_s=STEP_S, what="entered")
    until(lambda: "early" in (cached.row.hints or ()), within_s=STEP_S, what="published")
    assert cached.row.executing
    gate.open()
    running.reply()


def test_hints_are_asked_for_on_the_apps_threads_even_when_the_loop_leases(cached: Host) -> None:
    cached.post("/async-lease", {"model": "from the loop"})
    asked_on = cached.post("/async-lease", {"model": "from the loop"}).json["asked_on"]
    assert asked_on
    assert all(name.startswith("app_") for name in asked_on)


def test_a_request_that_waits_for_anothers_load_is_a_join() -> None:
    with Host("tests/host/joining_app.py::Joining") as host:
        first = host.later("/", {"model": "m", "load_s": 1.0})
        until(lambda: host.row.models, within_s=STEP_S, what="m loads")
        assert host.row.models[0].state == "loading"
        assert host.row.hints == ()
        second = host.later("/", {"model": "m", "load_s": 1.0})
        assert first.reply().timings["cache"] == "disk"
        joined = second.reply().timings
        assert joined["cache"] == "join"
        assert 0 < float(joined["load_s"]) <= 1.5
