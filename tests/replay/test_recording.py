"""A trace made of what the router tells: whole lines, hidden names, and nothing lost without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from falctl.cli.record import summary
from falctl.replay.recording import Form, Recorder, form_of
from falctl.replay.trace import Job, Missing, read_trace

KEY = b"0123456789abcdef"


def request(number: int, **given: Any) -> dict[str, Any]:
    return {
        "number": number,
        "arrived_at": 100.0 + number,
        "hint": "m",
        "client": "127.0.0.1",
        "exec_s": 2.0,
        "load_s": 8.0,
        "size_bytes": 7,
        "ram_load_s": None,
    } | given


def told(*requests: dict[str, Any], count: int | None = None, epoch: int = 1) -> dict[str, Any]:
    last = requests[-1]["number"] if requests else 0
    count = last if count is None else count
    return {"epoch": epoch, "at": 100.0, "count": count, "unfinished": 0, "requests": list(requests)}


def begun(*, hash_hints: bool = False, count: int = 0) -> Recorder:
    recorder = Recorder(KEY, hash_hints)
    assert recorder.take(told(count=count)) == []
    assert recorder.after == count
    return recorder


def test_times_count_from_the_beginning_of_the_recording() -> None:
    [row] = begun().take(told(request(1, arrived_at=103.25)))
    assert row == {
        "t_s": 3.25,
        "hint": "m",
        "exec_s": 2.0,
        "load_s": 8.0,
        "size_bytes": 7,
        "client": row["client"],
        "ram_load_s": None,
    }


def test_what_had_arrived_before_and_what_failed_is_left_out() -> None:
    recorder = begun(count=4)
    rows = recorder.take(told(request(5, arrived_at=99.0), request(6, exec_s=None), request(7)))
    assert [row["t_s"] for row in rows] == [7.0]
    assert (recorder.recorded, recorder.failed, recorder.after, recorder.lost) == (1, 1, 7, 0)


def test_a_gap_in_the_numbers_is_counted() -> None:
    recorder = begun()
    recorder.take(told(request(1)))
    recorder.take(told(request(5), request(6)))
    assert (recorder.lost, recorder.after) == (3, 6)
    recorder.take(told(count=6))
    assert (recorder.lost, recorder.after) == (3, 6)


def test_a_new_router_is_read_from_its_first_request_on() -> None:
    recorder = begun(count=9)
    assert recorder.take(told(request(10), epoch=2)) == [], "it answered to a number of the old one"
    assert (recorder.restarts, recorder.after, recorder.lost) == (1, 0, 0)
    assert len(recorder.take(told(request(1), request(2), epoch=2))) == 2
    assert (recorder.restarts, recorder.after) == (1, 2)


def test_clients_are_always_hidden_and_stay_apart() -> None:
    names = ("127.0.0.1", "127.0.0.1", "key 12", "")
    rows = begun().take(told(*(request(n, client=name) for n, name in enumerate(names, 1))))
    first, same, other, nobody = (row["client"] for row in rows)
    assert first == same != other
    assert nobody == ""
    assert not any(name in f"{rows}" for name in names if name)
    [elsewhere] = Recorder(b"another key of 16", after=0, _epoch=1).take(told(request(1)))
    assert elsewhere["client"] != first


def test_hints_are_hidden_if_asked_for() -> None:
    hints = ("secret", "secret", "other", None)
    rows = begun(hash_hints=True).take(told(*(request(n, hint=hint) for n, hint in enumerate(hints, 1))))
    first, same, other, none = (row["hint"] for row in rows)
    assert first == same != other
    assert none == ""
    assert "secret" not in f"{rows}"


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("t.csv", Form(json_lines=False, compressed=False)),
        ("t", Form(json_lines=False, compressed=False)),
        ("t.csv.gz", Form(json_lines=False, compressed=True)),
        ("t.jsonl", Form(json_lines=True, compressed=False)),
        ("t.jsonl.gz", Form(json_lines=True, compressed=True)),
    ],
)
def test_a_file_written_in_parts_is_a_trace(tmp_path: Path, name: str, form: Form) -> None:
    path = tmp_path / name
    assert form_of(path) == form
    recorder = begun()
    hints = ("a,b", 'q"', "\ud800", None)
    parts = [[request(1, hint=hints[0]), request(2, hint=hints[1])], [request(3, hint=hints[2])]]
    with path.open("wb") as file:
        file.write(form.text([], first=True))
        for part in parts:
            file.write(form.text(recorder.take(told(*part)), first=False))
        file.write(form.text(recorder.take(told(request(4, hint=None, load_s=None))), first=False))
    jobs = read_trace(path, missing=Missing(load_s=1.5))
    client = jobs[0].client
    assert jobs == [
        Job(n, hint or "", 2.0, 8.0 if n < 4 else 1.5, 7, client)  # type: ignore[arg-type]
        for n, hint in enumerate(hints, 1)
    ]
    assert recorder.without_load == 1


def test_the_summary_says_what_is_not_in_the_file() -> None:
    recorder = begun()
    assert summary(recorder, Path("t.csv")) == "t.csv: 0 requests"
    recorder.take(told(request(1, exec_s=None), request(2, load_s=None)) | {"unfinished": 3})
    text = summary(recorder, Path("t.csv"))
    assert text.startswith("t.csv: 1 request\n")
    assert "1 that failed" in text
    assert "3 have not ended" in text
    assert "1 have no load_s" in text
    assert "--load-s" in text
