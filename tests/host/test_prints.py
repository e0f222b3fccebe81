"""Lines out of what is printed: terminals' habits, bounds, and how they reach whoever listens."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from falctl.host.events import EventHub
from falctl.host.prints import logbook as module
from falctl.host.prints.assembly import BAR_PAUSE_S, LINE_BYTES_MAX, Assembly, readable
from falctl.host.prints.logbook import HELD_BYTES_MAX, LAG_BYTES_MAX, Logbook
from falctl.host.prints.native import NativeOutput
from falctl.host.prints.transcript import PER_SECOND_BYTES_MAX, TOTAL_BYTES_MAX, Level, Transcript
from falctl.lifeline import NativeFds
from falctl.wire import Hello, Message, Printed, Released
from tests.host.test_events import Peer, settle

WAIT_S = 60.0


def lines_of(*pieces: bytes, now: Iterable[float] = ()) -> list[str]:
    stream, found = Assembly(), list[str]()
    times = iter(now)
    for piece in pieces:
        found += stream.feed(piece, now=next(times, 0.0))
    return found + stream.close()


# --- lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"in ", b"pieces", b"\n", b"next"), ["in pieces", "next"]),
        ((b"windows\r\n", b"line\r", b"\n"), ["windows", "line"]),
        ((b"\n \n\t\n",), []),
        ((b"caf\xc3", b"\xa9\n", b"\xff\x00\xfe!\n"), ["café", "��!"]),
        ((b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\x1b[2K\n",), ["red text"]),
        ((b"tab\tstays \n",), ["tab\tstays"]),
    ],
)
def test_lines_are_as_a_person_reads_them(pieces: tuple[bytes, ...], found: list[str]) -> None:
    assert lines_of(*pieces) == found


def test_a_progress_bar_is_its_last_state_and_now_and_then_one_on_the_way() -> None:
    quick = [b"\r%3d%%" % n for n in range(0, 101, 10)]
    assert lines_of(*quick, b"\n") == ["100%"]
    slow = lines_of(*quick, b"\n", now=[n * 0.4 * BAR_PAUSE_S for n in range(12)])
    assert slow == [" 30%", " 60%", " 90%", "100%"]
    assert lines_of(b"\r 1%", b"\r 2%", b"\n", now=[0, 2, 4]) == [" 2%"], "shown already, and not again"
    assert lines_of(b"wait 1\rwait 2\r", b"done\n") == ["done"]


def test_a_huge_line_is_cut_and_says_so() -> None:
    (line,) = lines_of(*[b"x" * 1000] * 100, b"\n")
    assert line == "x" * LINE_BYTES_MAX + f" … ({100_000 - LINE_BYTES_MAX:,} bytes more)"
    assert lines_of(b"x" * 100_000, b"\rshort\n") == ["short"]


def test_a_traceback_of_fals_sdk_is_lines_again() -> None:
    told = "Traceback (most recent call last):\n  File 'a.py'\nValueError: no\n"
    assert readable(json.dumps({"traceback": told})) == told.rstrip()
    assert readable('{"traceback": "half') == '{"traceback": "half'
    assert readable('{"traceback": "a", "b": 1') == '{"traceback": "a", "b": 1'


# --- bounds ---------------------------------------------------------------------------------------


def texts(transcript: Transcript) -> list[str]:
    return [line.text for line in transcript.lines or ()]


def test_a_flood_is_cut_per_second_and_the_next_line_tells() -> None:
    transcript = Transcript("r")
    for _ in range(3):
        transcript.feed("STDOUT", b"x" * 999 + b"\n" + b"y" * 999 + b"\n", now=5.0, at=1.0)
    for _ in range(500):
        transcript.feed("STDOUT", b"x" * 999 + b"\n", now=5.5, at=2.0)
    kept = PER_SECOND_BYTES_MAX // 1063
    assert len(texts(transcript)) == kept
    transcript.feed("STDOUT", b"after\n", now=6.0, at=3.0)
    dropped = 506 - kept
    told = f"falctl: {dropped:,} lines ({dropped * 1063:,} bytes) are left out: they came too fast"
    assert texts(transcript)[kept:] == [told, "after"]
    assert (transcript.lines or [])[kept].level == "WARN"


def test_what_was_dropped_last_is_told_at_the_end() -> None:
    transcript = Transcript("r")
    transcript.feed("STDOUT", b"x\n" * 10_000, now=1.0, at=1.0)
    transcript.close(now=1.0, at=1.0)
    assert "are left out" in texts(transcript)[-1]


def test_all_of_a_request_is_bounded_and_that_is_told_once() -> None:
    transcript = Transcript("r")
    for second in range(100):
        transcript.feed("STDERR", b"z" * 30_000 + b"\n", now=second * 2.0, at=1.0)
    found = texts(transcript)
    assert found[-1].startswith("falctl: this request has printed")
    assert len(set(found[:-1])) == 1
    assert sum(line.size_bytes for line in transcript.lines or ()) < TOTAL_BYTES_MAX + 200


def test_times_grow_so_that_no_two_lines_are_the_same() -> None:
    transcript = Transcript("r")
    transcript.feed("STDOUT", b"a\na\na\n", now=1.0, at=1_800_000_000.0)
    transcript.say("INFO", "a", now=1.0, at=1_700_000_000.0)
    times = [line.at for line in transcript.lines or ()]
    assert len(set(times)) == 4
    assert times == sorted(times)
    transcript.say("INFO", "x" * 100_000, now=1.0, at=1_700_000_000.0)
    assert texts(transcript)[-1].endswith("characters more)")


# --- what is written to descriptors ---------------------------------------------------------------


def test_what_is_written_by_now_is_heard_at_once_and_passed_on() -> None:
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    heard: list[tuple[str, bytes]] = []

    class Ears:
        def hear(self, level: Level, data: bytes) -> None:
            heard.append((level, data))

    for read in (out, err):
        os.set_blocking(read, False)
    native = NativeOutput(NativeFds((out, err), (out_end, err_end)), Ears())
    native.drain()
    os.write(err_end, b"b")
    os.write(out_end, b"x" * 60_000)
    native.drain()
    assert sorted(heard) == [("STDERR", b"b"), ("STDOUT", b"x" * 60_000)]
    for number in (out, out_end, err, err_end, *native.outlets.values()):
        os.close(number)


# --- the logbook ----------------------------------------------------------------------------------


class Heard:
    """A hub with a reader, and what that has read."""

    def __init__(self) -> None:
        self.hub = EventHub()
        self.book = Logbook(self.hub, epoch=1)
        self.peer = Peer()
        self.task: Any = None

    async def listen(self) -> None:
        self.peer = Peer()
        first: list[Message] = [Hello(1, 1, []), *self.book.recap()]
        self.task = asyncio.ensure_future(self.hub.serve(first, self.peer.receive, self.peer.send))
        await settle()

    async def leave(self) -> None:
        self.peer.gone.set()
        await asyncio.wait_for(self.task, WAIT_S)

    def printed(self) -> list[Printed]:
        return [m for m in self.peer.lines if isinstance(m, Printed)]

    def texts(self) -> list[str]:
        return [line[2] for message in self.printed() for line in message.lines]

    async def has(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.texts()) < count:  # noqa: ASYNC110 - it is a batch that comes
                await asyncio.sleep(0.005)


def test_lines_come_in_batches_and_the_last_before_the_release() -> None:
    async def scene() -> None:
        heard, transcript = Heard(), Transcript("r")
        await heard.listen()
        threads = [
            threading.Thread(target=heard.book.hear, args=(transcript, "STDOUT", b"%d\n" % n))
            for n in range(9)
        ]
        for thread in threads:
            thread.start()
        await heard.has(9)
        heard.book.hear(transcript, "STDOUT", b"the end")
        heard.book.end(transcript)
        heard.hub.emit(Released(1, "r"))
        await settle()
        assert isinstance(heard.peer.lines[-1], Released)
        assert heard.texts()[-1] == "the end"
        heard.book.hear(transcript, "STDOUT", b"background\n")
        await heard.has(11)
        await heard.leave()

    asyncio.run(scene())


def test_a_request_without_a_word_costs_no_message() -> None:
    async def scene() -> None:
        heard = Heard()
        await heard.listen()
        heard.book.end(Transcript("r"))
        await settle()
        assert heard.printed() == []
        await heard.leave()

    asyncio.run(scene())


def test_a_new_reader_is_told_what_its_predecessor_may_have_taken_along() -> None:
    async def scene() -> None:
        heard, runs, over = Heard(), Transcript("runs"), Transcript("over")
        await heard.listen()
        heard.book.hear(over, "STDOUT", b"1\n")
        heard.book.hear(runs, "STDOUT", b"2\n")
        await heard.has(2)
        await heard.leave()
        heard.book.hear(over, "STDOUT", b"3\n")
        heard.book.end(over)
        heard.book.hear(runs, "STDOUT", b"4\n")
        await heard.listen()
        assert [(m.request, [line[2] for line in m.lines], m.again) for m in heard.printed()] == [
            ("over", ["1", "3"], True),
            ("runs", ["2", "4"], True),
        ]
        heard.book.hear(runs, "STDOUT", b"5\n")
        await heard.has(5)
        assert heard.texts()[-1] == "5", "told from where the recap ended"
        await heard.leave()

    asyncio.run(scene())


def test_what_ended_long_ago_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        heard, old, new = Heard(), Transcript("old"), Transcript("new")
        await heard.listen()
        monkeypatch.setattr(module, "monotonic_s", lambda: 100.0)
        heard.book.hear(old, "STDOUT", b"old\n")
        heard.book.end(old)
        monkeypatch.setattr(module, "monotonic_s", lambda: 100.0 + module.RETELL_S + 1.0)
        heard.book.hear(new, "STDOUT", b"new\n")
        heard.book.end(new)
        assert [message.request for message in heard.book.recap()] == ["new"]
        await heard.leave()

    asyncio.run(scene())


def test_a_reader_that_does_not_read_finds_lines_later_and_memory_is_bounded() -> None:
    async def scene() -> None:
        heard = Heard()
        await heard.listen()
        heard.peer.writable.clear()
        heard.hub.emit(Released(1, "x" * LAG_BYTES_MAX))
        await settle()
        heard.hub.emit(Released(1, "y" * LAG_BYTES_MAX))
        late = Transcript("late")
        heard.book.hear(late, "STDOUT", b"waits\n")
        heard.book._flush()
        assert len(heard.peer.lines) == 1
        others = [Transcript(str(n)) for n in range(3 * HELD_BYTES_MAX // PER_SECOND_BYTES_MAX)]
        for other in others:
            heard.book.hear(other, "STDOUT", b"z" * 30_000 + b"\n" + b"z" * 30_000 + b"\n")
        held = sum(line.size_bytes for t in others for line in t.lines or ())
        assert HELD_BYTES_MAX - 100_000 < held <= HELD_BYTES_MAX
        heard.peer.writable.set()
        await heard.has(1)
        assert "waits" in heard.texts()
        for other in others:
            heard.book.end(other)
        await settle()
        assert "are left out" in heard.texts()[-1]
        await heard.leave()

    asyncio.run(scene())


def test_printing_while_a_line_is_being_taken_in_neither_hangs_nor_counts() -> None:
    async def scene() -> None:
        heard, transcript = Heard(), Transcript("r")
        feed = transcript.feed

        class Rude:
            """As a signal's handler would that prints in the middle."""

            def __call__(self, *given: Any, **named: Any) -> int:
                heard.book.hear(transcript, "STDOUT", b"in between\n")
                heard.book.say(transcript, "INFO", "in between")
                return feed(*given, **named)

        class Interrupted(Transcript):
            __slots__ = ("feed",)

        rude = Interrupted("r")
        rude.feed = Rude()  # type: ignore[method-assign]
        heard.book.hear(rude, "STDOUT", b"line\n")
        assert texts(transcript) == ["line"]
        await settle()

    asyncio.run(scene())


def test_a_message_is_small_enough_for_the_stream() -> None:
    async def scene() -> None:
        heard, transcript = Heard(), Transcript("r")
        for _ in range(3):
            heard.book.hear(transcript, "STDOUT", b"m" * 30_000 + b"\n")
        told = heard.book.recap()
        assert [len(message.lines) for message in told] == [2, 1]

    asyncio.run(scene())
