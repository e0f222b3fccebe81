"""What a real host tells of what its app prints, by request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from falctl.wire import H_REQUEST_ID, Printed, Released
from tests.host.harness import Events, Host, idle

APP = "tests/host/printing_app.py"


@pytest.fixture(scope="module")
def printing_host() -> Iterator[Host]:
    with Host(f"{APP}::Printing") as host:
        yield host


@pytest.fixture
def printing(printing_host: Host) -> Iterator[Host]:
    yield printing_host
    idle(printing_host)


class Lines:
    """What is told of requests until each is released."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.found: dict[str, list[tuple[str, str]]] = {}

    def until_released(self, *requests: str) -> None:
        left = set(requests)
        while left:
            match self._events.next():
                case Printed(request=request, lines=lines):
                    self.found.setdefault(request, []).extend((level, text) for _, level, text in lines)
                case Released(request=request):
                    left.discard(request)
                case _:
                    pass


@contextlib.contextmanager
def listening(host: Host) -> Iterator[Lines]:
    with host.events() as events:
        yield Lines(events)


def ask(host: Host, path: str, request: str) -> int:
    return host.post(path, {"name": request}, {H_REQUEST_ID: request}).status


def test_every_way_of_printing_comes_with_its_level_before_the_release(printing: Host) -> None:
    with listening(printing) as lines:
        assert ask(printing, "/ways", "r") == 200
        lines.until_released("r")
    found = lines.found["r"]
    assert found[:3] == [("STDOUT", "r print"), ("STDERR", "r stderr"), ("STDOUT", "r bytes")]
    assert found[3][0] == "STDERR"
    assert found[3][1].endswith("UserWarning: r warning")
    assert [line for line in found if line[0] in ("INFO", "WARN")] == [("INFO", "r info"), ("WARN", "r warn")]
    assert ("ERROR", "r error\nKeyError: 'cause'") in found
    assert found[-1] == ("STDOUT", "r no newline")
    printed = "\n".join(text for _, text in found)
    assert not any(text in printed for text in ("ours", "below", "setup", "provide_hints", "import"))


def test_all_of_it_still_reaches_the_runners_own_output(printing: Host) -> None:
    assert ask(printing, "/ways", "out") == 200
    output = printing.output()
    for text in ("on import", "in setup", "in provide_hints", "out print", "out bytes", "out no newline"):
        assert text in output
    assert output.count("out info") == 1
    assert "ours" in output


def test_requests_side_by_side_keep_their_lines_apart(printing: Host) -> None:
    with listening(printing) as lines:
        names = [f"side-{n}" for n in range(6)]
        for first, second in zip(names[::2], names[1::2], strict=True):
            later = [
                printing.later("/async", {"name": name}, {H_REQUEST_ID: name}) for name in (first, second)
            ]
            assert [one.reply().status for one in later] == [200, 200]
            lines.until_released(first, second)
    for name in names:
        ways = {("STDOUT", f"{name} {where}") for where in ("begins", "in a thread", "in a task")}
        assert set(lines.found[name]) == ways


def test_a_stream_prints_between_its_parts(printing: Host) -> None:
    with listening(printing) as lines:
        assert ask(printing, "/stream", "s") == 200
        lines.until_released("s")
    assert lines.found["s"] == [("STDOUT", f"s {n}") for n in range(3)]


def test_what_a_background_task_prints_follows(printing: Host) -> None:
    found = list[str]()
    with printing.events() as events:
        assert ask(printing, "/background", "b") == 200
        while len(found) < 2:
            told = events.until(Printed)
            found += [line[2] for line in told.lines if told.request == "b"]
    assert found == ["first", "after the answer"]


def test_the_traceback_of_what_an_app_raised_is_the_requests(printing: Host) -> None:
    with listening(printing) as lines:
        assert ask(printing, "/fail", "f") == 500
        lines.until_released("f")
    ((level, text),) = lines.found["f"]
    assert level == "ERROR"
    assert text.startswith("Traceback")
    assert text.endswith("ValueError: the secret is 42")


def test_a_forked_child_prints_without_harm(printing: Host) -> None:
    assert printing.post("/fork").json == 0
    assert "from the child" in printing.output()


def test_the_streams_are_what_they_were_to_an_app(printing: Host) -> None:
    assert printing.post("/close").json == [1, False, "utf-8", "<stderr>"]


def test_where_there_is_one_slot_threads_libraries_and_children_count_too() -> None:
    with Host(f"{APP}::Alone") as host, listening(host) as lines:
        for n in range(3):
            assert ask(host, "/natively", f"n{n}") == 200
            lines.until_released(f"n{n}")
        for n in range(3):
            assert sorted(lines.found[f"n{n}"]) == [
                ("STDERR", "the last, no newline"),
                ("STDOUT", "a C library"),
                ("STDOUT", "a child"),
                ("STDOUT", "a thread of its own"),
                ("STDOUT", "print"),
            ]
        assert host.output().count("a C library\n") == 3
        assert host.output().count("a child") == 3


@pytest.mark.parametrize("path", ["/loud-child", "/loud-child-on-the-loop"])
def test_a_child_that_prints_more_than_a_pipe_takes_is_not_held_up(path: str) -> None:
    with Host(f"{APP}::Alone") as host, listening(host) as lines:
        assert host.post(path, {"lines": 2000}, {H_REQUEST_ID: "r"}).status == 200
        lines.until_released("r")
        texts = [text for _, text in lines.found["r"]]
        assert texts[0] == "x" * 999
        assert "left out" in texts[-1]
        assert host.output().count("y" * 999) == 2000


def test_a_forked_child_of_a_runner_with_one_slot_counts() -> None:
    with Host(f"{APP}::Alone") as host, listening(host) as lines:
        assert host.post("/fork", {}, {H_REQUEST_ID: "r"}).status == 200
        lines.until_released("r")
        assert lines.found["r"] == [("STDOUT", "from the child")]


def test_lines_from_before_a_router_was_there_come_with_its_stream(printing: Host) -> None:
    assert ask(printing, "/stream", "early") == 200
    with printing.events() as events:
        told = events.until(Printed)
        while told.request != "early":
            told = events.until(Printed)
    assert told.again
    assert [line[2] for line in told.lines] == ["early 0", "early 1", "early 2"]
