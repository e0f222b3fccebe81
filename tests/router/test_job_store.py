"""The job store: what it says is there is there, and what it cannot keep it refuses."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from falctl.core.retries import Outcome
from falctl.core.types import Hint, RequestId, Wanted
from falctl.errors import StartError, StorageFullError
from falctl.router.jobs import database, rows
from falctl.router.jobs.bodies import INLINE_BYTES_MAX
from falctl.router.jobs.database import ROW_BYTES
from falctl.router.jobs.envelope import unpack
from falctl.router.jobs.records import Answer, Ending, LogLine, NewJob, SavedJob, StoreLimits
from falctl.router.jobs.store import JobStore
from falctl.router.jobs.writer import Transaction

LIMITS = StoreLimits(keep_s=3600.0, max_bytes=1 << 30)
LARGE = b"x" * (INLINE_BYTES_MAX + 1)
WELL = Ending(Outcome(200), 0.5, 1e9)

T = TypeVar("T")


def q(n: int) -> RequestId:
    return RequestId(f"q{n}")


def job(n: int, body: bytes = b"body") -> NewJob:
    return NewJob(q(n), b"envelope", body)


def using(folder: Path, use: Callable[[JobStore], Awaitable[T]], limits: StoreLimits = LIMITS) -> T:
    """Open the store, do *use* with it, close it."""

    async def run() -> T:
        store = JobStore(folder, limits)
        try:
            return await use(store)
        finally:
            store.close()

    return asyncio.run(run())


async def _recovered(store: JobStore) -> list[SavedJob]:
    return list(store.recover())


def left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "bodies").iterdir()]


def test_what_was_submitted_is_found_in_order_by_the_next_router(tmp_path: Path) -> None:
    async def submit(store: JobStore) -> None:
        for n in range(3):
            await store.submit(job(n, LARGE if n == 1 else b"small"))
        await store.begin_attempt(q(0), attempts=2, failures={"timeout": 1})
        await store.begin_attempt(q(1), attempts=3, failures={}, dispatched=False)
        await store.cancel(q(2))

    async def look(store: JobStore) -> list[SavedJob]:
        assert await store.body(q(0)) == b"small"
        assert await store.body(q(1)) == LARGE
        return list(store.recover())

    using(tmp_path, submit)
    first, second, third = using(tmp_path, look)
    assert [first.request, second.request, third.request] == [q(0), q(1), q(2)]
    assert first.number < second.number < third.number
    assert first.envelope == b"envelope"
    assert (first.attempts, first.failures, first.dispatched) == (2, {"timeout": 1}, True)
    assert (second.attempts, second.dispatched, second.cancel_asked) == (3, False, False)
    assert third.cancel_asked


@pytest.mark.parametrize("body", [b"", b"small", LARGE])
def test_an_answer_is_kept_byte_for_byte_and_the_request_is_not(tmp_path: Path, body: bytes) -> None:
    answer = Answer((("content-type", "image/png"), ("x-hints", "caf\xe9")), body)

    async def use(store: JobStore) -> None:
        await store.submit(job(1, LARGE))
        await store.end(q(1), WELL, answer)
        assert await store.body(q(1)) is None
        assert await store.answer(q(1)) == answer
        found = await store.find(q(1))
        assert found is not None
        assert found.ending == WELL

    using(tmp_path, use)
    assert len(left(tmp_path)) == (body == LARGE)
    assert using(tmp_path, _recovered) == []


def test_a_second_end_changes_nothing(tmp_path: Path) -> None:
    async def use(store: JobStore) -> None:
        await store.submit(job(1))
        await store.end(q(1), WELL, Answer((), b"first"))
        await store.end(q(1), Ending(Outcome(503), None, 2e9), Answer((), LARGE))
        found, answer = await store.find(q(1)), await store.answer(q(1))
        assert found is not None
        assert found.ending == WELL
        assert answer == Answer((), b"first")

    using(tmp_path, use)
    assert left(tmp_path) == []


def test_what_nobody_knows_is_not_found(tmp_path: Path) -> None:
    async def use(store: JobStore) -> None:
        assert await store.find(q(1)) is None
        assert await store.body(q(1)) is None
        assert await store.answer(q(1)) is None
        await store.add_logs(q(1), [LogLine(1.0, "INFO", "to nobody")])
        assert await store.logs(q(1)) == []

    using(tmp_path, use)


def test_logs_are_kept_in_order_up_to_a_bound(tmp_path: Path) -> None:
    limits = StoreLimits(keep_s=1.0, max_bytes=1 << 20, log_bytes_max=400)

    async def use(store: JobStore) -> list[LogLine]:
        await store.submit(job(1))
        for n in range(10):
            await store.add_logs(q(1), [LogLine(float(n), "STDOUT", f"line {n} \ud800")])
        return await store.logs(q(1))

    kept = using(tmp_path, use, limits)
    assert [line.at for line in kept] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert kept[0].message == "line 0 ?"
    assert kept[-1] == LogLine(
        5.0, "WARN", "falctl: the logs of this job take 400 bytes; nothing more is kept"
    )


def test_logs_that_are_told_again_are_kept_once(tmp_path: Path) -> None:
    first, second = (LogLine(float(n), "STDOUT", "the same") for n in range(2))

    async def use(store: JobStore) -> list[LogLine]:
        await store.submit(job(1))
        await store.add_logs(q(1), [first])
        await store.add_logs(q(1), [first, second], retold=True)
        return await store.logs(q(1))

    assert using(tmp_path, use) == [first, second]


def hold(store: JobStore) -> tuple[threading.Event, asyncio.Future[None]]:
    """Keep the writer busy until the event is set."""
    go, held = threading.Event(), threading.Event()

    def write(_: Transaction) -> None:
        held.set()
        assert go.wait(60)

    future = store.writer.submit(write)
    assert held.wait(60)
    return go, future


def test_all_that_waits_is_committed_together(tmp_path: Path) -> None:
    async def use(store: JobStore) -> None:
        go, held = hold(store)
        submits = [asyncio.ensure_future(store.submit(job(n))) for n in range(64)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, *submits)
        assert (store.writer.writes, store.writer.transactions) == (65, 2)

    using(tmp_path, use)


def test_a_write_that_fails_spoils_no_other(tmp_path: Path) -> None:
    def fail(transaction: Transaction) -> None:
        transaction.doomed.append("a file")
        transaction.connection.execute("INSERT INTO jobs (id) VALUES ('half')")

    async def use(store: JobStore) -> None:
        go, held = hold(store)
        good = [asyncio.ensure_future(store.submit(job(n))) for n in range(4)]
        await asyncio.sleep(0)
        bad = store.writer.submit(fail)
        twin = asyncio.ensure_future(store.submit(job(0)))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, *good)
        with pytest.raises(sqlite3.IntegrityError):
            await bad
        with pytest.raises(StorageFullError):
            await twin

    using(tmp_path, use)
    assert len(using(tmp_path, _recovered)) == 4


def test_every_commit_is_on_the_disk_before_it_is_told(tmp_path: Path) -> None:
    """What only a power cut would show, or who looks for what was deleted: the settings are SQLite's own promise."""

    async def use(store: JobStore) -> list[object]:
        return await store.writer.submit(
            lambda t: [
                t.connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "secure_delete")
            ]
        )

    assert using(tmp_path, use) == ["wal", 2, 2]


def test_a_body_without_a_row_is_deleted_when_the_store_opens(tmp_path: Path) -> None:
    using(tmp_path, lambda store: store.submit(job(1, LARGE)))
    halves = [tmp_path / name for name in ("bodies/half", "jobs.new", "jobs.new-journal")]
    for half in halves:
        half.write_bytes(b"half")
    using(tmp_path, _recovered)
    assert not any(half.exists() for half in halves)
    assert len(left(tmp_path)) == 1
    assert using(tmp_path, lambda store: store.body(q(1))) == LARGE


# --- limits --------------------------------------------------------------------------------------


def test_beyond_the_bound_ended_jobs_leave_first_and_then_submissions_are_refused(tmp_path: Path) -> None:
    limits = StoreLimits(keep_s=3600.0, max_bytes=3 * (ROW_BYTES + 1000) + 100)

    async def use(store: JobStore) -> None:
        for n in range(2):
            await store.submit(job(n, b"x" * 900))
            await store.end(q(n), Ending(Outcome(200), 0.1, 1e9 + n), Answer((), b"y" * 900))
        await store.submit(job(2, b"x" * 900))
        await store.submit(job(3, b"x" * 900))
        assert await store.find(q(0)) is None, "the oldest has left"
        assert await store.find(q(1)) is not None
        await store.submit(job(4, b"x" * 900))
        with pytest.raises(StorageFullError, match=r"queue\.max_disk"):
            await store.submit(job(5, LARGE))
        assert [found.request for found in store.recover()] == [q(2), q(3), q(4)]
        assert await store.used_bytes() <= limits.max_bytes

    using(tmp_path, use, limits)
    assert left(tmp_path) == []


@pytest.mark.parametrize("wiped", ["file", "folder", "parent"])
def test_a_store_that_is_wiped_begins_anew_with_all_but_the_large_bodies(
    tmp_path: Path, wiped: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "home" / "jobs"
    folder.parent.mkdir(mode=0o700)

    async def use(store: JobStore) -> None:
        for n, body in enumerate((b"small", LARGE, b"ends", b"ends large")):
            await store.submit(job(n, body))
        await store.begin_attempt(q(0), attempts=3, failures={"timeout": 1})
        await store.end(q(2), WELL, Answer((), b"well"))
        await store.end(q(3), WELL, Answer((), LARGE))
        if wiped == "file":
            (folder / "jobs.db").unlink()
        else:
            shutil.rmtree(folder if wiped == "folder" else folder.parent)
        await store.submit(job(4, LARGE))
        assert await store.body(q(4)) == LARGE
        await store.begin_attempt(q(0), attempts=4, failures={"timeout": 1})

    async def look(store: JobStore) -> None:
        first, large, last = store.recover()
        assert [first.request, large.request, last.request] == [q(0), q(1), q(4)]
        assert first.attempts == 4
        assert await store.body(q(0)) == b"small"
        assert await store.body(q(1)) == (LARGE if wiped == "file" else None)
        assert await store.answer(q(2)) == Answer((), b"well")
        assert await store.answer(q(3)) == (Answer((), LARGE) if wiped == "file" else None)
        assert await store.body(q(4)) == LARGE

    using(folder, use)
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert str(folder / "jobs.db") in line
    assert f"; {0 if wiped == 'file' else 2} requests and results larger" in line
    assert not list(folder.glob("jobs.new*"))
    assert stat.S_IMODE((folder / "jobs.db").stat().st_mode) == 0o600
    using(folder, look)


def test_a_store_that_is_wiped_while_nobody_writes_is_put_back_too(tmp_path: Path) -> None:
    async def use(store: JobStore) -> None:
        await store.submit(job(1))
        await store.look_after()
        shutil.rmtree(tmp_path / "jobs")
        await store.look_after()

    using(tmp_path / "jobs", use)
    assert [found.request for found in using(tmp_path / "jobs", _recovered)] == [q(1)]


def test_a_database_that_was_put_in_its_place_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def use(store: JobStore) -> None:
        await store.submit(job(1))
        path.rename(tmp_path / "away")
        path.write_bytes(b"of somebody else")
        with pytest.raises(StorageFullError, match="was replaced"):
            await store.submit(job(2))
        path.unlink()
        await store.submit(job(3))
        assert [await store.body(q(n)) for n in (1, 2, 3)] == [b"body", None, b"body"]

    using(tmp_path, use)


def test_nobody_else_can_read_what_is_queued(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    (folder / "bodies").mkdir(parents=True)
    for path in (folder, folder / "bodies"):
        path.chmod(0o755)
    (folder / "jobs.db").touch(0o644)

    async def use(store: JobStore) -> dict[str, int]:
        await store.submit(job(1, LARGE))
        return {path.name: path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))}

    modes = using(folder, use)
    assert {"jobs.db", "jobs.db-wal", "bodies"} < set(modes)
    assert not any(modes.values()), modes


def test_an_end_is_kept_even_where_no_room_is_left(tmp_path: Path) -> None:
    limits = StoreLimits(keep_s=3600.0, max_bytes=ROW_BYTES + 100)

    async def use(store: JobStore) -> Answer | None:
        await store.submit(job(1))
        await store.end(q(1), WELL, Answer((), LARGE))
        return await store.answer(q(1))

    assert using(tmp_path, use, limits) == Answer((), LARGE)


def test_what_ended_long_ago_is_deleted_and_nothing_of_it_stays(tmp_path: Path) -> None:
    async def use(store: JobStore) -> None:
        for n in range(3):
            await store.submit(job(n, LARGE))
            await store.add_logs(q(n), [LogLine(1.0, "INFO", "line")])
        for n in range(2):
            await store.end(q(n), Ending(Outcome(200), 0.1, 4e9 * n), Answer((), LARGE))
        assert await store.sweep() == 1
        assert await store.find(q(0)) is None
        assert await store.find(q(1)) is not None
        await store.end(q(2), Ending(Outcome(200), 0.1, 0.0), None)
        store.limits = StoreLimits(keep_s=-4e9, max_bytes=1)
        assert await store.sweep() == 2
        assert await store.used_bytes() == 0

    using(tmp_path, use)
    assert left(tmp_path) == []


# --- files that were there before ----------------------------------------------------------------


def opened(folder: Path) -> str:
    """Return what is said of the database in *folder*."""
    with pytest.raises(StartError) as caught:
        using(folder, _recovered)
    return str(caught.value)


@pytest.mark.parametrize("damage", [b"no database at all, but long enough to be one" * 100, b"\0" * 5000])
def test_what_is_no_database_is_refused_in_a_line_and_left_alone(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(damage)
    said = opened(tmp_path)
    assert str(path) in said
    assert f"move the folder {tmp_path} away" in said
    assert "\n" not in said
    assert path.read_bytes() == damage


def test_a_damaged_queue_is_refused(tmp_path: Path) -> None:
    async def fill(store: JobStore) -> None:
        await asyncio.gather(*(store.submit(job(n, b"x" * 3000)) for n in range(100)))

    using(tmp_path, fill)
    path = tmp_path / "jobs.db"
    content = bytearray(path.read_bytes())
    content[4096:40960] = b"\xaa" * (40960 - 4096)
    path.write_bytes(content)
    assert "damaged" in opened(tmp_path) or "malformed" in opened(tmp_path)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("CREATE TABLE jobs (anything)")
    other.close()
    assert "another program" in opened(tmp_path)


def test_a_newer_queue_is_refused(tmp_path: Path) -> None:
    using(tmp_path, lambda store: store.submit(job(1)))
    newer = sqlite3.connect(tmp_path / "jobs.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    assert "version 99" in opened(tmp_path)


def test_what_ended_stays_until_its_webhook_is_told(tmp_path: Path) -> None:
    async def run(store: JobStore) -> None:
        for n in range(2):
            await store.submit(NewJob(q(n), b"{}", b"x", receiver="http://h:80" if n else None))
            await store.end(q(n), Ending(Outcome(200), 0.1, 1.0), Answer((), b"y" * 1000))
        assert await store.sweep() == 1
        assert await store.find(q(0)) is None
        assert await store.answer(q(1)) is not None
        store.limits = StoreLimits(keep_s=3600.0, max_bytes=1000)
        with pytest.raises(StorageFullError):
            await store.submit(job(2))
        assert await store.answer(q(1)) is not None
        await store.write(lambda transaction: transaction.connection.execute("DELETE FROM webhooks"))
        await store.submit(job(3))
        assert await store.find(q(1)) is None

    using(tmp_path, run)


def test_a_job_that_is_deleted_leaves_no_webhook_behind(tmp_path: Path) -> None:
    async def run(store: JobStore) -> int:
        await store.submit(NewJob(q(1), b"{}", b"x", receiver="http://h:80"))
        await store.end(q(1), WELL, None)
        await store.write(lambda transaction: rows.delete_job(transaction.connection, 1))
        found: int = await store.read(lambda c: c.execute("SELECT count(*) FROM webhooks").fetchone()[0])
        return found

    assert using(tmp_path, run) == 0


def test_a_queue_of_the_first_version_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", database.MIGRATIONS[:1])
        database.open_database(tmp_path / "jobs.db").close()
    with sqlite3.connect(tmp_path / "jobs.db") as first:
        first.execute("INSERT INTO jobs (id, envelope, submitted_at) VALUES ('q1', '{}', 1.0)")
    first.close()

    async def end(store: JobStore) -> SavedJob | None:
        await store.end(q(1), Ending(Outcome(200), 0.1, 1.0), None)
        return await store.find(q(1))

    ended = using(tmp_path, end)
    assert ended is not None
    assert ended.ending == Ending(Outcome(200), 0.1, 1.0)


def test_a_queue_of_the_first_version_is_taken_over_without_the_keys_in_it(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes((Path(__file__).parent / "old_queue" / "version-1.db").read_bytes())
    assert b"secret-of-a-client" in path.read_bytes()

    async def look(store: JobStore) -> None:
        sent, waits, cancelled = store.recover()
        assert [sent.request, waits.request, cancelled.request] == ["sent", "waits", "cancelled"]
        assert (sent.attempts, sent.failures, sent.dispatched) == (2, {"connection_error": 1}, True)
        assert cancelled.cancel_asked
        assert await store.body(waits.request) == b'{"n": 2}'
        envelope = unpack(waits.envelope)
        assert (envelope.app, envelope.path, envelope.query) == ("owner/app", b"/waits", b"a=1")
        assert [name for name, _ in envelope.headers] == [b"host", b"content-type", b"x-own"]
        assert dict(envelope.headers)[b"x-own"] == b"caf\xe9"
        assert envelope.wanted == Wanted(Hint("m"), "body")
        ended = await store.find(RequestId("ended"))
        assert ended is not None
        assert ended.ending == Ending(Outcome(200), 0.5, 1e9)
        answer = await store.answer(ended.request)
        assert answer == Answer((("content-type", "application/json"),), b'{"ok": true}')
        assert await store.logs(ended.request) == [LogLine(1e9, "STDOUT", "a line")]
        for request in ("sent", "waits", "cancelled"):
            await store.end(RequestId(request), WELL, None)
        store.limits = StoreLimits(keep_s=-4e9, max_bytes=1)
        await store.sweep()
        assert await store.used_bytes() == 0, "it was counted right"

    using(tmp_path, look)
    assert b"secret-of-a-client" not in path.read_bytes()


def test_what_is_damaged_in_a_result_costs_that_result_alone(tmp_path: Path) -> None:
    """Results may take gigabytes: whoever starts falctl does not wait until they are all read."""

    async def fill(store: JobStore) -> None:
        for n in range(40):
            await store.submit(job(n))
            await store.end(q(n), WELL, Answer((), bytes([n]) * 60000))
        await store.submit(job(40))

    using(tmp_path, fill)
    path = tmp_path / "jobs.db"
    content = path.read_bytes()
    at = content.index(bytes([20]) * 4000) & ~4095
    path.write_bytes(content[:at] + b"\xff" * 4096 + content[at + 4096 :])

    async def look(store: JobStore) -> None:
        assert [found.request for found in store.recover()] == [q(40)]
        with pytest.raises(sqlite3.DatabaseError):
            await store.answer(q(20))
        answer = await store.answer(q(39))
        assert answer is not None
        assert answer.body == bytes([39]) * 60000
        await store.submit(job(41))

    using(tmp_path, look)


def test_an_older_queue_is_migrated_or_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    using(tmp_path, lambda store: store.submit(job(1)))
    first = database.MIGRATIONS
    half = "ALTER TABLE jobs ADD COLUMN more TEXT; ALTER TABLE nothing ADD COLUMN more TEXT"
    monkeypatch.setattr(database, "MIGRATIONS", (*first, half))
    assert "nothing" in opened(tmp_path)
    monkeypatch.setattr(
        database, "MIGRATIONS", (*first, "ALTER TABLE jobs ADD COLUMN more TEXT DEFAULT 'new'")
    )
    assert [found.request for found in using(tmp_path, _recovered)] == [q(1)]
    with sqlite3.connect(tmp_path / "jobs.db") as migrated:
        assert migrated.execute("SELECT more FROM jobs").fetchall() == [("new",)]
        assert migrated.execute("PRAGMA user_version").fetchone() == (len(first) + 1,)
    migrated.close()
