"""The queue as fal's clients speak to it, on a real router with hosts that do as they are told."""

from __future__ import annotations

import json
import resource
import shutil
import uuid

import pytest
from starlette.types import Send

from falctl import wire
from tests.router.client import ask
from tests.router.fake_host import PATIENCE_S, Gate, Handler, Seen, answer, say_ok
from tests.router.harness import Setup, log_of, serving, waits
from tests.router.queue_calls import becomes, breaks, cancel, in_turn, result, saying, status, submit
from tests.wait import until

# --- shapes ---------------------------------------------------------------------------------------


def test_a_job_is_submitted_run_and_fetched(setup: Setup) -> None:
    setup.hosts[0].handler = saying(
        200, b'{"n": 1}', (b"content-type", b"application/json"), (b"x-own", b"caf\xe9")
    )
    told = submit(
        setup,
        "/sub/path?a=1&fal_max_queue_length=5",
        b'{"model": "m"}',
        headers={"x-fal-queue-priority": "low"},
    )
    request = told["request_id"]
    base = f"http://127.0.0.1:{setup.port}/queue/owner/app/requests/{request}"
    assert told == {
        "status": "IN_QUEUE",
        "request_id": request,
        "gateway_request_id": request,
        "queue_position": 0,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }
    reply = result(setup, request)
    assert (reply.status, reply.json()) == (200, {"n": 1})
    assert reply.value("x-fal-request-id") == request
    assert reply.value("x-own") == "caf\xe9"
    assert ask(setup, "GET", f"/queue/owner/app/requests/{request}/response").body == reply.body
    (seen,) = setup.hosts[0].seen
    assert (seen.method, seen.raw_path, seen.query) == ("POST", b"/sub/path", b"a=1")
    assert seen.body == b'{"model": "m"}'
    assert seen.request == request
    assert not seen.values("x-fal-queue-priority")
    assert not seen.values("accept-encoding"), "the result is for whoever asks for it"


def test_every_status_has_the_keys_that_the_clients_need(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    running = submit(setup)["request_id"]
    assert becomes(setup, running, "IN_PROGRESS")["logs"] is None
    first, second = submit(setup)["request_id"], submit(setup)["request_id"]
    low = submit(setup, headers={"x-fal-queue-priority": "low"})["request_id"]
    assert [status(setup, request)["queue_position"] for request in (first, second, low)] == [0, 1, 0]
    assert status(setup, running, "?logs=1")["logs"] == []
    early = ask(setup, "GET", f"/queue/owner/app/requests/{running}")
    assert (early.status, early.json()["error_type"]) == (400, "bad_request")
    gate.opened.set()
    done = becomes(setup, low, "COMPLETED")
    assert done["metrics"]["inference_time"] >= 0
    assert done["logs"] is None
    assert "error" not in done
    assert [seen.request for seen in setup.hosts[0].seen] == [running, first, second, low]


def test_an_error_of_the_app_is_the_result(setup: Setup) -> None:
    setup.hosts[0].handler = saying(422, b'{"detail": [{"loc": ["body"]}]}')
    request = submit(setup)["request_id"]
    reply = result(setup, request)
    assert (reply.status, reply.json()["detail"][0]["loc"]) == (422, ["body"])
    assert "error" in status(setup, request)
    assert len(setup.hosts[0].seen) == 1, "it is not retried"


def test_a_large_body_and_a_large_result_pass_whole(setup: Setup) -> None:
    async def back(seen: Seen, send: Send) -> None:
        await answer(send, seen.body)

    setup.hosts[0].handler = back
    body = bytes(range(256)) * 4000
    assert result(setup, submit(setup, body=body)["request_id"]).body == body


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/queue/owner/app/requests/unknown/status", 404),
        ("GET", "/queue/owner/app/requests/unknown", 404),
        ("GET", "/queue/owner/app/requests/unknown/response", 404),
        ("GET", "/queue/owner/app/requests/unknown/status/stream", 404),
        ("GET", "/queue/owner/app/requests/unknown/elsewhere", 404),
        ("POST", "/queue/owner/app/requests/unknown/cancel", 405),
        ("POST", "/queue/owner/app/requests/unknown/status", 405),
        ("PUT", "/queue/owner/app", 405),
        ("GET", "/queue/owner/app", 405),
        ("POST", "/queue/owner", 404),
        ("POST", "/queue//app", 404),
        ("POST", "/queue/owner/app?fal_max_queue_length=many", 400),
    ],
)
def test_what_cannot_be_answered_is_refused_clearly(setup: Setup, method: str, path: str, code: int) -> None:
    reply = ask(setup, method, path, body=b"{}" if method == "POST" else None)
    assert reply.status == code
    assert set(reply.json()) == {"detail", "error_type"}


@pytest.mark.parametrize("config", ["[]", "no json", "7"])
def test_a_retry_config_that_is_none_is_refused(setup: Setup, config: str) -> None:
    reply = ask(setup, path="/queue/o/a", body=b"{}", headers={"x-fal-retry-config": config})
    assert reply.status == 400
    assert "X-Fal-Retry-Config" in reply.json()["detail"]


def test_a_client_may_bound_the_queue_that_it_joins(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    becomes(setup, submit(setup)["request_id"], "IN_PROGRESS")
    submit(setup, "?fal_max_queue_length=0")
    refused = ask(setup, path="/queue/owner/app?fal_max_queue_length=0", body=b"{}")
    assert (refused.status, refused.value("x-fal-needs-retry")) == (429, "1")
    gate.opened.set()


# --- retries, deadlines, cancellation --------------------------------------------------------------


@pytest.mark.parametrize("broken", [saying(503), saying(504), breaks])
def test_an_attempt_that_breaks_is_made_again(setup: Setup, broken: Handler) -> None:
    setup.hosts[0].handler = in_turn(broken, say_ok)
    reply = result(setup, submit(setup)["request_id"])
    assert (reply.status, reply.body) == (200, b"ok")
    assert len(setup.hosts[0].seen) == 2


@pytest.mark.parametrize(
    "headers", [{"x-fal-no-retry": "1"}, {"x-fal-retry-config": '{"server_error": {"retries": 0}}'}]
)
def test_who_wants_no_retry_gets_the_first_failure(setup: Setup, headers: dict[str, str]) -> None:
    setup.hosts[0].handler = in_turn(saying(503, b'{"detail": "first"}'), say_ok)
    reply = result(setup, submit(setup, headers=headers)["request_id"])
    assert (reply.status, reply.json()) == (503, {"detail": "first"})


def test_an_app_may_ask_for_another_attempt(setup: Setup) -> None:
    setup.hosts[0].handler = in_turn(saying(500, b"{}", (b"x-fal-needs-retry", b"1")), say_ok)
    assert result(setup, submit(setup)["request_id"]).status == 200


def test_a_job_that_its_runner_does_not_let_in_goes_again_and_no_attempt_is_lost(setup: Setup) -> None:
    setup.hosts[0].bounces = 1
    assert result(setup, submit(setup, headers={"x-fal-no-retry": "1"})["request_id"]).status == 200


def test_a_job_that_does_not_start_in_time_fails_as_fal_says(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    becomes(setup, submit(setup)["request_id"], "IN_PROGRESS")
    late = submit(setup, headers={"x-fal-request-timeout": "0.2"})["request_id"]
    reply = result(setup, late)
    assert (reply.status, reply.json()["error_type"]) == (504, "request_timeout")
    gate.opened.set()


def test_what_waits_can_be_cancelled_and_never_runs(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    running, waiting = submit(setup)["request_id"], submit(setup)["request_id"]
    becomes(setup, running, "IN_PROGRESS")
    reply = cancel(setup, waiting)
    assert (reply.status, reply.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert result(setup, waiting).json()["error_type"] == "client_cancelled"
    gate.opened.set()
    assert result(setup, running).status == 200
    again = cancel(setup, running)
    assert (again.status, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert [seen.request for seen in setup.hosts[0].seen] == [running]


def test_what_runs_is_cancelled_at_its_host(setup: Setup) -> None:
    async def until_cancelled(seen: Seen, send: Send) -> None:
        import asyncio

        async with asyncio.timeout(600):
            while seen.request not in setup.hosts[0].cancelled:  # noqa: ASYNC110 - the host notes it in a list
                await asyncio.sleep(0.01)
        await answer(send, b'{"detail": "cancelled"}', status=499)

    setup.hosts[0].handler = until_cancelled
    request = submit(setup)["request_id"]
    becomes(setup, request, "IN_PROGRESS")
    assert cancel(setup, request).status == 202
    assert result(setup, request).status == 499


# --- what lies on the disk -------------------------------------------------------------------------


def test_what_proves_who_a_client_is_does_not_lie_on_the_disk(setup: Setup) -> None:
    secret = {
        "authorization": "Key a-secret",
        "cookie": "id=a-secret",
        "proxy-authorization": "Basic a-secret",
    }
    request = submit(setup, headers=secret | {"x-own": "kept"})["request_id"]
    assert result(setup, request).status == 200
    [seen] = setup.hosts[0].seen
    assert seen.values("x-own") == [b"kept"]
    assert not any(seen.values(name) for name in secret), (
        "its app sees the same, whether it is attempted at once or later"
    )
    files = [path for path in setup.home.root.rglob("*") if path.is_file()]
    assert setup.home.jobs / "jobs.db-wal" in files
    assert not any(b"a-secret" in path.read_bytes() for path in files)


def test_a_queue_that_is_wiped_goes_on_and_only_large_bodies_are_lost() -> None:
    with serving() as setup:
        gate, large = Gate(), b"x" * 100_000
        setup.hosts[0].handler = gate
        small, lost = submit(setup)["request_id"], submit(setup, body=large)["request_id"]
        becomes(setup, small, "IN_PROGRESS")
        shutil.rmtree(setup.home.jobs)
        assert status(setup, lost)["queue_position"] == 0
        later = submit(setup, body=large)["request_id"]
        assert "put back with 2 waiting or running jobs and 0 ended ones; 1 requests" in log_of(setup)
        assert setup.router is not None
        gate.opened.set()
        assert [result(setup, request).status for request in (small, lost, later)] == [200, 500, 200]

        async def says_much(_: Seen, send: Send) -> None:
            await answer(send, large)

        setup.hosts[0].handler = says_much
        request = submit(setup)["request_id"]
        assert result(setup, request).body == large
        shutil.rmtree(setup.home.jobs / "bodies")
        gone = ask(setup, "GET", f"/queue/owner/app/requests/{request}")
        assert (gone.status, "is lost" in gone.json()["detail"]) == (404, True)


# --- what dies ------------------------------------------------------------------------------------


def test_jobs_outlive_routers_and_each_ends_once(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    requests = [submit(setup, body=json.dumps({"n": n}).encode())["request_id"] for n in range(20)]
    becomes(setup, requests[0], "IN_PROGRESS")
    for _ in range(3):
        assert setup.router is not None
        setup.router.kill()
        setup.start_router()
        assert status(setup, requests[7])["status"] in ("IN_QUEUE", "IN_PROGRESS")
    gate.opened.set()
    for request in requests:
        assert result(setup, request).body == b"ok"
    once = [seen.request for seen in setup.hosts[0].seen]
    assert set(once) == set(requests)
    assert [once.count(request) for request in requests[1:]] == [1] * 19


def test_what_a_dead_router_sent_is_stopped_and_over_before_it_is_sent_again() -> None:
    with serving(slots=2) as setup:
        host, gate = setup.hosts[0], Gate()

        async def first_waits(seen: Seen, send: Send) -> None:
            await (gate if seen.body == b"wait" else say_ok)(seen, send)

        host.handler = first_waits
        request = submit(setup, body=b"wait")["request_id"]
        until(lambda: host.seen, within_s=PATIENCE_S, what="it runs")
        for _ in range(2):  # the second router finds on the disk that it waits
            assert setup.router is not None
            setup.router.kill()
            setup.start_router()
            until(lambda: request in host.cancelled, within_s=PATIENCE_S, what="it is to be stopped")
            host.cancelled.clear()
            assert result(setup, submit(setup)["request_id"]).status == 200
            assert [seen.request for seen in host.seen].count(request) == 1, "the free slot is not for it"
        gate.opened.set()
        assert result(setup, request).body == b"ok"
        assert [seen.request for seen in host.seen].count(request) == 2


def test_an_attempt_whose_connection_broke_is_over_before_the_next() -> None:
    """The host runs on, as with a sync endpoint: the scheduler would mix up two of one name."""
    with serving(slots=2) as setup:
        host, gate = setup.hosts[0], Gate()

        async def breaks_and_runs_on(seen: Seen, send: Send) -> None:
            send.__self__.transport.abort()  # type: ignore[attr-defined] # uvicorn's side of the connection
            await gate(seen, send)

        host.handler = in_turn(breaks_and_runs_on, say_ok)
        request = submit(setup)["request_id"]
        until(lambda: request in host.cancelled, within_s=PATIENCE_S, what="it is to be stopped")
        assert len(host.seen) == 1
        gate.opened.set()
        assert result(setup, request).body == b"ok"
        assert len(host.seen) == 2


def test_a_result_is_there_after_a_restart(setup: Setup) -> None:
    request = submit(setup)["request_id"]
    result(setup, request)
    assert setup.router is not None
    setup.router.kill()
    setup.start_router()
    assert result(setup, request).body == b"ok"


def test_thousands_that_wait_show_the_scheduler_a_window(setup: Setup) -> None:
    gate = Gate()
    setup.hosts[0].handler = gate
    for n in range(600):
        submit(setup, body=b'{"model": "rare"}' if n == 599 else b'{"model": "m"}')
    waits(setup, 512 + 1)
    gate.opened.set()
    last = submit(setup)["request_id"]
    assert result(setup, last).status == 200


def test_a_job_waits_while_no_runner_is_left_and_runs_when_one_is_back() -> None:
    with serving() as setup:
        setup.change(0, 1, "failed")
        until(lambda: not setup.status()["runners"][0]["slots"], within_s=PATIENCE_S, what="no runner")
        request = submit(setup)["request_id"]
        assert status(setup, request)["status"] == "IN_QUEUE"
        setup.hosts.pop(0).close()
        setup.add_host(0, epoch=2)
        setup.change(0, 2, "ready")
        assert result(setup, request).status == 200


def test_a_drain_waits_for_what_runs_and_leaves_what_waits_to_the_next() -> None:
    with serving() as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        running, waiting = submit(setup)["request_id"], submit(setup)["request_id"]
        becomes(setup, running, "IN_PROGRESS")
        assert setup.router is not None
        setup.router.send(wire.Drain(600.0))
        assert not setup.router.heard(wire.Drained, within_s=0.5)
        gate.opened.set()
        setup.router.expect(wire.Drained)
        setup.router.kill()
        setup.start_router()
        assert [result(setup, request).status for request in (running, waiting)] == [200, 200]
        assert [seen.request for seen in setup.hosts[0].seen] == [running, waiting]


def test_no_place_to_keep_it_is_507() -> None:
    with serving(config={"queue": {"max_disk": "1MiB"}}) as setup:
        gate = Gate()
        setup.hosts[0].handler = gate
        submit(setup, body=b"x" * 900_000)
        reply = ask(setup, path="/queue/o/a", body=b"x" * 900_000)
        assert (reply.status, reply.json()["error_type"]) == (507, "storage_full")
        assert "queue.max_disk" in reply.json()["detail"]
        gate.opened.set()


def test_a_full_disk_is_told_to_who_cancels_and_once_to_the_log_and_holds_up_nothing_later() -> None:
    with serving() as setup:
        assert setup.router is not None
        gate = Gate()
        setup.hosts[0].handler = gate
        running, *waiting = [submit(setup)["request_id"] for _ in range(6)]
        becomes(setup, running, "IN_PROGRESS")
        pid, endless = setup.router.process.pid, resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, endless))
        try:
            gate.opened.set()  # its end, and the next attempts, cannot be written
            reply = cancel(setup, waiting[-1])
            assert (reply.status, reply.json()["error_type"]) == (507, "storage_full")
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (endless, endless))
        for request in (running, *waiting):
            becomes(setup, request, "COMPLETED")
        answers = [result(setup, request).status for request in (running, *waiting)]
        assert answers == [200] * 5 + [499]
        said = [line.partition("jobs.")[2] for line in log_of(setup).splitlines() if "jobs." in line]
        assert [line.partition(":")[0] for line in said].count("not_written") == len(set(said)) - 1, said
        assert said[-1] == "written_again"


def test_a_damaged_queue_is_said_by_the_router_in_one_line() -> None:
    setup = Setup()
    try:
        setup.home.jobs.mkdir(exist_ok=True)
        (setup.home.jobs / "jobs.db").write_bytes(uuid.uuid4().bytes * 1000)
        with pytest.raises(AssertionError):
            setup.start_router(wait_for_runners=False)
        assert setup.router is not None
        failed = next(m for m in setup.router.received if isinstance(m, wire.Failed))
        assert str(setup.home.jobs / "jobs.db") in failed.message
        assert failed.exit_code == 1
    finally:
        setup.close()


def test_a_job_has_a_receipt_and_counts_as_a_direct_request_does(setup: Setup) -> None:
    before = setup.status()
    timings = (wire.H_TIMINGS.encode(), b"cache=hit;load_s=0.000000;exec_s=0.250000")
    setup.hosts[0].handler = saying(200, b"{}", timings)
    reply = result(setup, submit(setup, body=b'{"model": "m"}')["request_id"])
    assert (reply.value("x-falctl-runner"), reply.value("x-falctl-cache")) == ("0", "hit")
    timing = reply.value("server-timing") or ""
    assert timing.startswith("queue;dur=")
    assert timing.endswith("load;dur=0.000, exec;dur=250.000")
    assert reply.value(wire.H_TIMINGS) is None
    after = setup.status()
    assert [after[name] - before[name] for name in ("served", "hits", "misses")] == [1, 1, 0]
