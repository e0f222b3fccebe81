"""The router's own life: starting, finding the fleet, reloading, draining, stopping, being replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from starlette.types import Send

from falctl import wire
from falctl.apikeys import hash_key
from falctl.clock import monotonic_s
from falctl.config import Config
from tests.router.client import Later, Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S, Gate, Seen, answer
from tests.router.harness import Setup, idle, log_of, serving, waits
from tests.wait import until


@pytest.fixture
def one() -> Iterator[Setup]:
    with serving() as setup:
        yield setup


def test_a_full_queue_refuses_with_429(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    assert one.router is not None
    one.router.send(wire.Reload(Config.model_validate({"queue": {"max": 2}}).model_dump(mode="json")))
    until(lambda: "router.reloaded" in log_of(one), within_s=PATIENCE_S, what="reload")
    later = Later()
    later.ask(one)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    for _ in range(2):
        later.ask(one)
    waits(one, 2)
    reply = ask(one)
    assert reply.status == 429
    assert reply.json()["error_type"] == "concurrent_requests_limit"
    assert reply.json()["detail"].startswith("2 requests wait, as many as queue.max allows")
    assert reply.value("x-fal-needs-retry") == "1"
    assert int(reply.value("retry-after") or "0") >= 1
    assert one.status()["refused"] == 1
    gate.opened.set()
    assert [r.status for r in later.all()] == [200] * 3


def test_one_client_s_batch_leaves_places_to_the_others(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    assert one.router is not None
    config = Config.model_validate({"queue": {"max": 10, "max_per_client": 2}})
    one.router.send(wire.Reload(config.model_dump(mode="json")))
    until(lambda: "router.reloaded" in log_of(one), within_s=PATIENCE_S, what="reload")
    greedy, modest = {"authorization": "Key greedy"}, {"authorization": "Key modest"}
    later = Later()
    later.ask(one, headers=greedy)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    for _ in range(2):
        later.ask(one, headers=greedy)
    waits(one, 2)
    reply = ask(one, headers=greedy)
    assert (reply.status, reply.value("x-fal-needs-retry")) == (429, "1")
    assert reply.json()["error_type"] == "concurrent_requests_limit"
    assert reply.json()["detail"].startswith("2 requests of this client wait")
    assert "queue.max_per_client" in reply.json()["detail"]
    assert int(reply.value("retry-after") or "0") >= 1
    later.ask(one, headers=modest)
    waits(one, 3)
    gate.opened.set()
    assert [r.status for r in later.all()] == [200] * 4


def test_a_router_waits_for_runners_that_are_starting() -> None:
    setup = Setup()
    try:
        setup.put_life(0, 1, "starting")
        setup.start_router(wait_for_runners=False)
        later = Later()
        later.ask(setup)
        waits(setup, 1)
        setup.add_host(0)
        setup.change(0, 1, "ready")
        assert [reply.status for reply in later.all()] == [200]
    finally:
        setup.close()


def test_a_new_router_finds_the_hints_and_the_slots_in_use() -> None:
    with serving(runners=2) as setup:
        assert setup.router is not None
        gate = Gate()
        setup.hosts[0].handler = gate
        setup.hosts[0].set_hints("m")
        setup.hosts[1].set_hints("n")
        held = Raw(setup, request_bytes("/old", b"X-Fal-Runner-Hint: m"))
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        setup.router.kill()
        later = Later()
        later.ask(setup, headers={"x-fal-runner-hint": "m"})  # waits in the socket's backlog
        setup.start_router()
        waits(setup, 1)
        assert setup.status()["runners"][0]["in_flight"] == 1
        assert setup.status()["runners"][0]["hints"] == ["m"]
        assert len(setup.hosts[0].seen) == 1, "the card that is busy for a dead router runs no second job"
        assert ask(setup, headers={"x-fal-runner-hint": "n"}).value("x-falctl-runner") == "1"
        gate.opened.set()
        (reply,) = later.all()
        assert (reply.status, reply.value("x-falctl-runner")) == (200, "0")
        held.close()


def test_hints_are_followed_as_they_change() -> None:
    with serving(runners=2) as setup:
        for holder in (1, 0, 1):
            setup.hosts[holder].set_hints("m")
            setup.hosts[1 - holder].set_hints("n")
            for _ in range(3):
                assert ask(setup, headers={"x-fal-runner-hint": "m"}).value("x-falctl-runner") == str(holder)
        status = setup.status()
        assert (status["hits"], status["misses"]) == (9, 0)
        ask(setup, headers={"x-fal-runner-hint": "o"})
        ask(setup)
        status = setup.status()
        assert (status["hits"], status["misses"], status["served"]) == (9, 1, 11)


def test_hints_on_the_board_count_before_anybody_tells_of_them() -> None:
    with serving(runners=2) as setup:
        for holder in (1, 0):
            for host in setup.hosts.values():
                host.hints = ("m",) if host.runner == holder else ("n",)
                host.call(host.put_row)
            assert ask(setup, headers={"x-fal-runner-hint": "m"}).value("x-falctl-runner") == str(holder)


def test_a_slot_that_comes_back_is_given_away_by_the_hints_that_came_with_it(one: Setup) -> None:
    gate = Gate()
    host = one.hosts[0]
    host.handler = gate
    later = Later()
    for count, path in enumerate(("/first", "/a", "/b")):
        later.ask(one, path=path, headers={"x-fal-runner-hint": path})
        until(lambda: host.executing, within_s=PATIENCE_S, what="executing")
        waits(one, count)
    host.hints = ("/b",)  # published with the release, and told by nothing but it
    gate.opened.set()
    assert [reply.status for reply in later.all()] == [200] * 3
    assert [seen.raw_path for seen in host.seen] == [b"/first", b"/b", b"/a"]


def test_the_host_s_word_on_hits_counts_more_than_ours() -> None:
    with serving(hints=("m",)) as setup:
        sayings = iter((b"disk", b"join", b"ram", b"hit", b"none"))

        async def say(_: Seen, send: Send) -> None:
            timings = (wire.H_TIMINGS.encode(), b"cache=" + next(sayings) + b";load_s=0;exec_s=0")
            await answer(send, headers=(timings,))

        setup.hosts[0].handler = say
        for _ in range(5):
            ask(setup, headers={"x-fal-runner-hint": "m"})
        assert (setup.status()["hits"], setup.status()["misses"]) == (2, 3)


def test_a_reload_takes_effect_at_once(one: Setup) -> None:
    assert one.router is not None
    assert ask(one, headers={"host": "studio.lan"}).status == 421
    server = {"hosts": ["studio.lan"], "api_keys": [hash_key("k")], "max_body": 2048, "keep_alive": 0.3}
    config = Config.model_validate(
        {"server": server, "routing": {"hint_from": "ckpt"}, "log": {"level": "debug"}}
    )
    one.router.send(wire.Reload(config.model_dump(mode="json")))
    until(lambda: "router.reloaded" in log_of(one), within_s=PATIENCE_S, what="reload")
    assert ask(one, headers={"host": "studio.lan"}).status == 401
    key = {"authorization": "Key k", "content-type": "application/json"}
    assert ask(one, headers=key, body=b"x" * 3000).status == 413
    assert ask(one, headers=key, body=b'{"ckpt": "c", "model": "m"}').status == 200
    assert one.hosts[0].seen[-1].values(wire.H_WANTED) == [b'"c"']
    until(lambda: "request.done" in log_of(one), within_s=PATIENCE_S, what="it is logged")
    with Raw(one, request_bytes("/", b"Authorization: Key k")) as raw:
        raw.read_until(b"ok")
        assert raw.read_all() == b"", "closed long before the usual keep_alive"


def test_what_a_client_writes_forges_no_lines_of_the_log() -> None:
    with serving(config={"log": {"level": "debug"}}) as setup:
        ask(setup, path="/%0aforged%1b[31m")
        until(lambda: "forged" in log_of(setup), within_s=PATIENCE_S, what="logged")
        assert r"path='/\nforged\x1b[31m'" in log_of(setup)
        assert not any(line.startswith("forged") for line in log_of(setup).splitlines())


def test_draining_refuses_what_waits_and_finishes_what_runs(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    assert one.router is not None
    running, waiting = Later(), Later()
    running.ask(one)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    waiting.ask(one)
    waits(one, 1)
    one.router.send(wire.Drain(600.0))
    for reply in (*waiting.all(), ask(one)):
        assert reply.status == 503
        assert reply.json()["error_type"] == "runner_scheduling_failure"
        assert "shutting down" in reply.json()["detail"]
        assert reply.value("retry-after") is None, "nobody knows when there will be another"
    assert one.status()["draining"]
    assert not one.router.heard(wire.Drained, within_s=0.3), "something still runs"
    gate.opened.set()
    one.router.expect(wire.Drained)
    assert [reply.status for reply in running.all()] == [200]


def test_an_idle_router_is_drained_at_once(one: Setup) -> None:
    assert one.router is not None
    one.router.send(wire.Drain(600.0))
    one.router.expect(wire.Drained)


def test_stop_ends_the_process_with_0_and_leaves_the_socket_to_the_supervisor(one: Setup) -> None:
    assert one.router is not None
    idle_client = Raw(one, request_bytes())
    idle_client.read_until(b"ok")
    one.router.send(wire.Stop())
    assert one.router.process.wait(PATIENCE_S) == 0
    assert idle_client.read_all() == b""
    idle_client.close()
    assert "Traceback" not in log_of(one)
    assert "Unclosed" not in log_of(one)
    later = Later()
    later.ask(one)  # nobody accepts now, and nobody refuses
    one.start_router()
    assert [reply.status for reply in later.all()] == [200]


def test_stop_lets_an_answer_be_written_to_its_end(one: Setup) -> None:
    size = 6 << 20
    one.hosts[0].handler = lambda _, send: answer(send, b"z" * size)
    assert one.router is not None
    with Raw(one, request_bytes("/", b"Connection: close"), receive_bytes=65536) as raw:
        raw.read_until(b"\r\n\r\n")
        one.router.send(wire.Stop())
        assert len(raw.read_all()) == size
    assert one.router.process.wait(PATIENCE_S) == 0


def test_stop_does_not_wait_for_a_job_that_goes_on(one: Setup) -> None:
    one.hosts[0].handler = Gate()
    assert one.router is not None
    with Raw(one, request_bytes()):
        until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        one.router.send(wire.Stop())
        assert one.router.process.wait(PATIENCE_S) == 0
    assert "router.stopped" in log_of(one)
    assert "Traceback" not in log_of(one)


def test_a_router_dies_with_its_supervisor(one: Setup) -> None:
    assert one.router is not None
    one.router._channel.close()
    os.close(one.router._life)
    one.router._life = -1
    assert one.router.process.wait(PATIENCE_S) == -9


def test_a_draining_runner_gets_nothing_more() -> None:
    with serving(runners=2) as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        later = Later()
        later.ask(setup)
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="executing")
        setup.hosts[0].emit(wire.Draining(1))
        setup.change(0, 1, "draining")
        gate.opened.set()
        assert [reply.status for reply in later.all()] == [200]
        assert [ask(setup).value("x-falctl-runner") for _ in range(3)] == ["1"] * 3
        setup.change(0, 1, "stopped")
        assert [ask(setup).value("x-falctl-runner") for _ in range(3)] == ["1"] * 3


def test_news_of_an_older_incarnation_changes_nothing(one: Setup) -> None:
    one.hosts[0].close()
    one.add_host(0, epoch=2)
    one.change(0, 2, "ready")
    one.wait_up(0, 2)
    assert one.router is not None
    one.router.send(wire.RunnerChanged(0, 1, "failed"))
    one.router.send(wire.RunnerChanged(0, 1, "ready"))
    one.router.send(wire.RunnerChanged(0, 2, "starting"))
    assert ask(one).status == 200
    assert one.status()["runners"][0]["state"] == "ready"


def test_what_a_stopped_runner_still_sent_reaches_the_client(one: Setup) -> None:
    size = 3 << 20
    one.hosts[0].handler = lambda _, send: answer(send, b"z" * size)
    with Raw(one, request_bytes("/", b"Connection: close"), receive_bytes=65536) as raw:
        raw.read_until(b"\r\n\r\n")
        one.change(0, 1, "stopped")
        assert len(raw.read_all()) == size


# --- the board ---------------------------------------------------------------------------------


def test_the_row_beats_once_a_second_and_tells_what_is_going_on(one: Setup) -> None:
    gate = Gate()
    one.hosts[0].handler = gate
    later = Later()
    later.ask(one)
    until(lambda: one.hosts[0].executing, within_s=PATIENCE_S, what="executing")
    later.ask(one, body=b'{"model": "m"}')
    waits(one, 1)

    def row_shows_it() -> bool:
        row = one.board.router()
        assert row is not None
        return (row.queued, row.in_flight) == (1, (1,))

    until(row_shows_it, within_s=PATIENCE_S, what="the row")
    row = one.board.router()
    assert row is not None
    assert [queued.hint for queued in row.queue] == ["m"]
    assert row.queue[0].client == "127.0.0.1"
    assert row.queued_bytes == len(b'{"model": "m"}')
    assert one.router is not None
    assert (row.pid, row.epoch) == (one.router.process.pid, 1)
    assert any("runner 0 ready" in event.text for event in row.events)
    first = row.beat_at
    until(lambda: (r := one.board.router()) and r.beat_at > first, within_s=2.0, what="the next beat")
    gate.opened.set()
    later.all()
    idle(one)

    def row_shows_rest() -> bool:
        last = one.board.router()
        assert last is not None
        return (
            last.served == 2 and last.misses == 1 and last.p50_s > 0 and last.rate_rps > 0 and not last.queue
        )

    until(row_shows_rest, within_s=PATIENCE_S, what="the row at rest")


def test_the_row_beats_although_nothing_happens(one: Setup) -> None:
    beats: set[float] = set()

    def beat() -> bool:
        row = one.board.router()
        assert row is not None
        beats.add(row.beat_at)
        return len(beats) >= 4

    until(beat, within_s=6.0, what="four beats")


def test_the_row_is_written_at_most_four_times_a_second_under_load(one: Setup) -> None:
    words: list[int] = []
    started_at = monotonic_s()
    while monotonic_s() - started_at < 1.5:
        ask(one)
        words.append(int.from_bytes(one.board.versions()[8:16], "little"))
    writes = (words[-1] - words[0]) // 2
    assert 1 <= writes <= (monotonic_s() - started_at) / 0.25 + 1
