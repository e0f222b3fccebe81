"""A runner runs no more requests than it has slots, and gives each slot back in time, whatever happens to it."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import psutil
import pytest

from falctl.wire import Drain, Drained, Draining, Hello, HintsChanged, Message, Released
from tests.host.conftest import PROBE, Gate
from tests.host.harness import STEP_S, Host, executing, idle
from tests.wait import until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def pair() -> Iterator[Host]:
    with Host(f"{PROBE}::ProbePair") as host:
        yield host


def request_id(name: str) -> dict[str, str]:
    return {"x-fal-request-id": name}


def entered(gate: Gate) -> None:
    until(lambda: gate.has("entered"), within_s=STEP_S, what="the app was entered")


def test_a_request_without_a_free_slot_is_bounced_and_the_app_is_not_entered(
    probe: Host, gate: Gate, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Gate(tmp_path_factory.mktemp("other"))
    running = probe.later("/held", gate.body)
    entered(gate)
    reply = probe.post("/held", other.body)
    assert (reply.status, reply.headers["x-falctl-bounced"]) == (503, "1")
    assert reply.json["error_type"] == "runner_scheduling_failure"
    assert not other.has("entered")
    gate.open()
    assert running.reply().status == 200


def test_health_openapi_and_docs_take_no_slot(probe: Host, gate: Gate) -> None:
    running = probe.later("/held", gate.body)
    entered(gate)
    for path in ("/health", "/openapi.json", "/docs"):
        assert probe.ask("GET", path).status == 200
    assert not running.done
    gate.open()
    running.reply()


def test_any_other_path_takes_a_slot_and_gives_it_back(probe: Host, gate: Gate) -> None:
    with probe.events() as events:
        events.until(Hello)
        assert probe.post("/nowhere", headers=request_id("n1")).status == 404
        assert events.until(Released).request == "n1"
        assert probe.ask("GET", "/model", headers=request_id("n2")).status == 405
        assert events.until(Released).request == "n2"


def test_as_many_run_at_once_as_there_are_slots(
    pair: Host, gate: Gate, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = Gate(tmp_path_factory.mktemp("other"))
    running = [pair.later("/held", gate.body), pair.later("/held", other.body)]
    entered(gate)
    entered(other)
    assert pair.post("/model").headers["x-falctl-bounced"] == "1"
    gate.open()
    other.open()
    assert [r.reply().status for r in running] == [200, 200]
    assert pair.row.slots == 2


def test_the_stream_begins_with_what_runs_and_tells_each_end_after_the_row_was_written(
    probe: Host, gate: Gate
) -> None:
    served = probe.row.served
    running = probe.later("/held", gate.body, request_id("h1"))
    entered(gate)
    with probe.events() as first, probe.events() as second:
        for events in (first, second):
            hello = events.until(Hello)
            assert (hello.epoch, hello.slots, hello.executing) == (1, 1, ["h1"])
        gate.open()
        told = first.until(Released)
        assert (told.epoch, told.request) == (1, "h1")
        assert probe.row.served == served + 1
        assert probe.row.executing == ()
        assert second.until(Released) == told
    assert running.reply().status == 200


def test_the_slot_is_free_and_the_hints_are_published_when_the_last_chunk_arrives(probe: Host) -> None:
    connection = probe.connect()
    for n in range(50):
        body = f'{{"hints": ["h{n}"]}}'.encode()
        connection.request("POST", "/hints", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.headers["x-fal-runner-hints"] == f"h{n}"
        assert response.read() == b'"set"'
        assert probe.row.hints == (f"h{n}",)
        assert probe.row.executing == ()
    connection.close()


def test_the_released_message_is_on_its_way_before_the_last_byte_of_the_answer(probe: Host) -> None:
    """The host writes to the event stream first, so a reader that looks after its answer finds it there."""
    with probe.events() as events:
        events.until(Hello)
        for n in range(100):
            assert probe.post("/model", headers=request_id(f"o{n}")).status == 200
            told = events.next()
            assert isinstance(told, Released)
            assert told.request == f"o{n}"


def test_a_client_that_goes_leaves_a_sync_endpoint_its_slot_until_it_returns(probe: Host, gate: Gate) -> None:
    running = probe.later("/held", gate.body, request_id("g1"))
    entered(gate)
    running.hang_up()
    with probe.events() as events:
        assert events.until(Hello) == Hello(1, 1, ["g1"])
        assert probe.post("/model").headers["x-falctl-bounced"] == "1"
        gate.open()
        assert events.until(Released).request == "g1"
    assert probe.post("/model").status == 200


def test_a_client_that_goes_does_not_cancel_what_a_sync_endpoint_reports(probe: Host, gate: Gate) -> None:
    running = probe.later("/steps", gate.body, request_id("g2"))
    entered(gate)
    running.hang_up()
    steps = probe.row.executing[0].step
    until(lambda: probe.row.executing[0].step > steps + 20, within_s=STEP_S, what="it goes on")
    gate.open()
    idle(probe)


@pytest.mark.parametrize("path", ["/aheld", "/endless"])
def test_a_client_that_goes_cancels_async_work(probe: Host, gate: Gate, path: str) -> None:
    running = probe.later(path, gate.body)
    entered(gate)
    running.hang_up()
    until(
        lambda: gate.has("cancelled") or gate.has("closed"), within_s=STEP_S, what="the app's code was ended"
    )
    idle(probe)


def test_a_sync_stream_whose_client_goes_holds_its_slot_until_its_thread_is_back(
    probe: Host, gate: Gate
) -> None:
    running = probe.later("/sync-stream", gate.body, request_id("s1"))
    entered(gate)
    running.hang_up()
    with probe.events() as events:
        assert events.until(Hello) == Hello(1, 1, ["s1"])
        assert probe.post("/model").headers["x-falctl-bounced"] == "1"
        gate.open()
        assert events.until(Released).request == "s1"
    until(lambda: gate.has("closed"), within_s=STEP_S, what="the generator was closed")


def test_a_thread_that_ends_late_is_waited_for_without_spinning(probe: Host, gate: Gate) -> None:
    running = probe.later("/sync-stream", gate.body, request_id("s2"))
    entered(gate)
    host = psutil.Process(probe.process.pid)
    running.hang_up()
    before = host.cpu_times().user
    beat = probe.row.beat_at
    until(lambda: probe.row.beat_at > beat + 1.5, within_s=STEP_S, what="two beats")
    assert host.cpu_times().user - before < 0.75
    gate.open()


@pytest.mark.parametrize("how", ["cancel", "hang up"])
def test_a_stream_that_a_sync_endpoint_returns_too_late_is_not_sent(
    probe: Host, gate: Gate, how: str
) -> None:
    running = probe.later("/held-then-stream", gate.body, request_id("late"))
    entered(gate)
    if how == "cancel":
        assert probe.post("/falctl/cancel/late").status == 202
    else:
        running.hang_up()
    gate.open()
    idle(probe)
    assert "request.failed request=late" not in probe.output()


def test_a_client_that_goes_before_its_body_is_whole_enters_nothing(probe: Host) -> None:
    connection = probe.connect()
    connection.putrequest("POST", "/length")
    connection.putheader("Content-Length", "100")
    connection.putheader("x-fal-request-id", "b1")
    connection.endheaders(b"half")
    executing(probe, "b1")
    connection.close()
    idle(probe)


@pytest.mark.parametrize("path", ["/aheld", "/steps"])
def test_cancel_answers_499(probe: Host, gate: Gate, path: str) -> None:
    running = probe.later(path, gate.body, request_id("c1"))
    entered(gate)
    assert probe.post("/falctl/cancel/c1").status == 202
    reply = running.reply()
    assert (reply.status, reply.json) == (
        499,
        {"detail": "Request cancelled", "error_type": "client_cancelled"},
    )
    assert reply.headers["x-fal-error-type"] == "client_cancelled"
    assert not gate.has("open")


def test_cancel_of_a_sync_endpoint_that_reports_nothing_lets_it_answer(probe: Host, gate: Gate) -> None:
    running = probe.later("/held", gate.body, request_id("c2"))
    entered(gate)
    assert probe.post("/falctl/cancel/c2").status == 202
    assert probe.row.executing[0].request == "c2"
    gate.open()
    assert running.reply().json == "held"


def test_cancel_breaks_a_stream_off_without_a_final_chunk(probe: Host, gate: Gate) -> None:
    running = probe.later("/endless", gate.body, request_id("c3"))
    entered(gate)
    assert probe.post("/falctl/cancel/c3").status == 202
    with pytest.raises(http.client.IncompleteRead):
        running.reply()
    until(lambda: gate.has("closed"), within_s=STEP_S, what="the generator was closed")
    assert "request.broken request=c3" in probe.output()
    assert " ERROR " not in probe.output()


def test_cancel_of_what_does_not_run_is_404(probe: Host) -> None:
    assert probe.post("/falctl/cancel/nobody").status == 404


def test_progress_is_published_with_a_sign_of_life(probe: Host, gate: Gate) -> None:
    running = probe.later("/steps", gate.body, {**request_id("p1"), "x-fal-runner-hint": "m"})
    entered(gate)
    until(lambda: probe.row.progress_known, within_s=STEP_S, what="steps are known")
    first = probe.row
    assert first.executing[0].hint == "m"
    assert first.executing[0].steps == 1_000_000
    until(lambda: probe.row.executing[0].step > first.executing[0].step, within_s=STEP_S, what="more steps")
    assert probe.row.progress_at > first.progress_at
    gate.open()
    running.reply()
    assert not probe.row.progress_known


def test_progress_is_published_at_most_twenty_times_a_second(probe: Host, gate: Gate) -> None:
    running = probe.later("/steps", gate.body)
    entered(gate)
    beats: set[float] = set()

    def a_dozen() -> bool:
        beats.add(probe.row.beat_at)
        return len(beats) >= 12

    until(a_dozen, within_s=STEP_S, what="a dozen rows", every_s=0.001)
    gate.open()
    running.reply()
    assert max(beats) - min(beats) >= 10 * 0.05


def test_a_silent_request_claims_no_progress(probe: Host, gate: Gate) -> None:
    running = probe.later("/held", gate.body)
    entered(gate)
    before = probe.row
    until(lambda: probe.row.beat_at > before.beat_at, within_s=STEP_S, what="a beat")
    assert probe.row.progress_at == before.progress_at
    assert not probe.row.progress_known
    gate.open()
    running.reply()


def test_a_draining_host_says_so_takes_nothing_new_and_lets_the_rest_end(gate: Gate) -> None:
    with Host(f"{PROBE}::Probe") as host, host.events() as events:
        events.until(Hello)
        running = host.later("/held", gate.body)
        entered(gate)
        host.send(Drain(60.0))
        assert events.until(Draining) == Draining(1)
        assert host.post("/model").headers["x-falctl-bounced"] == "1"
        assert host.ask("GET", "/health").status == 200
        assert host.said.empty()
        gate.open()
        host.heard(Drained)
        assert running.reply().status == 200
        assert host.post("/model").headers["x-falctl-bounced"] == "1"


def test_draining_ends_when_its_time_is_up(gate: Gate) -> None:
    with Host(f"{PROBE}::Probe") as host:
        running = host.later("/held", gate.body)
        entered(gate)
        host.send(Drain(0.1))
        host.heard(Drained)
        assert not running.done


def test_changed_hints_are_told_before_the_end_of_the_request(probe: Host) -> None:
    probe.post("/hints", {"hints": ["before"]})
    with probe.events() as events:
        events.until(Hello)
        probe.post("/hints", {"hints": ["after"]}, request_id("x1"))
        assert events.next() == HintsChanged(1)
        assert released(events.next()) == "x1"
        probe.post("/hints", {"hints": ["after"]}, request_id("x2"))
        assert released(events.next()) == "x2"


def released(message: Message) -> str:
    assert isinstance(message, Released)
    return message.request
