"""What our processes log: clients' texts stand in it, and do nothing else."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from falctl import logs


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    to = io.StringIO()
    logs.configure("info", to=to)
    yield to
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_client_s_text_begins_no_line_and_steers_no_terminal(written: io.StringIO) -> None:
    name = "a\n16:00:00 INFO    forged\r\x1b[2J\x00\x9b\u2028\ud800é"
    logging.getLogger("falctl").info("runner.loads model=%s", name)
    (line,) = written.getvalue().splitlines()
    assert line.endswith(
        r"INFO    runner.loads model=a\n16:00:00 INFO    forged\r\x1b[2J\x00\x9b\u2028\ud800é"
    )


def test_a_traceback_keeps_its_lines_and_nothing_else_that_steers(written: io.StringIO) -> None:
    try:
        raise ValueError("one\ntwo \x1b[31mred")
    except ValueError:
        logging.getLogger("falctl").exception("request.failed")
    lines = written.getvalue().splitlines()
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2:] == ["ValueError: one", r"two \x1b[31mred"]
