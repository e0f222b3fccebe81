"""A trace is read whole or refused in one line that names the row and the field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from falctl.core.types import Hint
from falctl.errors import ConfigError
from falctl.replay.trace import FIELDS, Job, Missing, read_trace
from tests.replay.traces import FIVE, five
from tests.replay.written import write_trace

on_files = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


def written(folder: Path, content: str | bytes, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read_trace(path)
    message = str(refused.value)
    assert message.startswith(f"trace {path}")
    assert "\n" not in message
    assert refused.value.exit_code == 2
    return message.removeprefix(f"trace {path}")


# --- what can be read ------------------------------------------------------------------------------


def test_csv_and_json_lines_say_the_same_plain_and_compressed(tmp_path: Path) -> None:
    lines = FIVE.splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    numbers = [{k: v if k in ("hint", "client") else float(v) for k, v in row.items()} for row in rows]
    as_json = "".join(json.dumps(row) + "\n" for row in numbers)
    expected = read_trace(written(tmp_path, FIVE))
    assert [j.client for j in expected] == ["x", "y", "x", "", "y"]
    assert [(j.t_s, j.hint, j.exec_s, j.load_s, j.size_bytes) for j in expected] == [
        (j.t_s, j.hint, j.exec_s, j.load_s, j.size_bytes) for j in five()
    ]
    assert read_trace(written(tmp_path, as_json, "t.jsonl")) == expected
    assert read_trace(written(tmp_path, gzip.compress(as_json.encode(), mtime=0), "t.jsonl.gz")) == expected
    assert read_trace(written(tmp_path, gzip.compress(FIVE.encode(), mtime=0), "t.csv.gz")) == expected
    assert read_trace(written(tmp_path, FIVE.replace("\n", "\r\n"), "dos.csv")) == expected
    assert read_trace(written(tmp_path, "\ufeff" + FIVE, "bom.csv")) == expected


def test_requests_are_sorted_by_time_and_equals_keep_their_order(tmp_path: Path) -> None:
    jobs = read_trace(written(tmp_path, "t_s,hint,exec_s,load_s\n5,a,1,1\n3,b,1,1\n5,c,1,1\n3,d,1,1\n"))
    assert [job.hint for job in jobs] == ["b", "d", "a", "c"]


def test_a_trace_of_bare_arrivals_takes_the_costs_it_lacks(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"i": 0, "t": 0.5, "model": "m"}\n{"t": 1, "model": "n", "exec_s": 9}\n', "z.jsonl"
    )
    assert "row 1: exec_s: is missing" in refusal(path)
    jobs = read_trace(path, missing=Missing(exec_s=0.04, load_s=0.4))
    assert jobs == [Job(0.5, Hint("m"), 0.04, 0.4, 0, ""), Job(1.0, Hint("n"), 9.0, 0.4, 0, "")]


def test_the_load_factor_stretches_loads_alone(tmp_path: Path) -> None:
    path = written(tmp_path, FIVE)
    assert [job.load_s for job in read_trace(path, load_factor=0.5)] == [2.0, 2.0, 1.5, 1.5, 2.0]
    assert [job.exec_s for job in read_trace(path, load_factor=0.5)] == [2.0, 2.0, 1.0, 1.0, 2.0]


words = st.text(max_size=8)
costs = st.floats(0, 1e9, allow_nan=False)
jobs_of_any_kind = st.builds(
    Job, st.floats(-1e9, 1e9), words.map(Hint), costs, costs, st.integers(0, 1 << 50), words
)


@on_files
@given(jobs=st.lists(jobs_of_any_kind, min_size=1, max_size=10), name=st.sampled_from(["t.csv", "t.csv.gz"]))
def test_what_is_written_is_read_back_exactly(tmp_path: Path, jobs: list[Job], name: str) -> None:
    jobs = sorted(jobs, key=lambda job: job.t_s)
    write_trace(tmp_path / name, jobs)
    assert read_trace(tmp_path / name) == jobs


def test_a_hint_that_is_half_a_surrogate_pair_survives(tmp_path: Path) -> None:
    jobs = [Job(0.0, Hint('\ud800,\n"x'), 1.0, 1.0, 0, "")]
    write_trace(tmp_path / "t.csv", jobs)
    assert read_trace(tmp_path / "t.csv") == jobs


def test_the_same_trace_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.gz", "two.gz"):
        write_trace(tmp_path / name, five())
    raw = (tmp_path / "one.gz").read_bytes()
    assert raw == (tmp_path / "two.gz").read_bytes()
    assert raw[4:8] == bytes(4), "no time of writing in it"
    assert gzip.decompress(raw).decode().split("\r\n")[0] == ",".join(FIELDS)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("t_s", "soon"),
        ("t_s", ""),
        ("t_s", "inf"),
        ("exec_s", "nan"),
        ("exec_s", "-1"),
        ("exec_s", "1,5"),
        ("load_s", "-0.1"),
        ("load_s", "1e999"),
        ("size_bytes", "big"),
        ("size_bytes", "-1"),
    ],
)
@pytest.mark.parametrize("row", [1, 3, 5])
def test_a_field_that_makes_no_sense_is_named_with_its_row(
    tmp_path: Path, field: str, value: str, row: int
) -> None:
    lines = FIVE.splitlines()
    cells = lines[row].split(",")
    cells[FIELDS.index(field)] = f'"{value}"'
    lines[row] = ",".join(cells)
    message = refusal(written(tmp_path, "\n".join(lines)))
    assert message.startswith(f", row {row}: {field}: ")
    assert repr(value) in message or not value


@pytest.mark.parametrize("value", ["true", "null", "[]", '"x"', "NaN", "-1", "1" * 400])
def test_a_json_value_that_is_no_cost_is_named_with_its_row(tmp_path: Path, value: str) -> None:
    good = '{"t_s": 0, "hint": "a", "exec_s": 1, "load_s": 1}\n'
    bad = f'{{"t_s": 1, "hint": "a", "exec_s": {value}, "load_s": 1}}\n'
    assert refusal(written(tmp_path, good + "\n" + bad, "t.jsonl")).startswith(", row 2: exec_s: ")


@pytest.mark.parametrize("value", ["3", "null", "true", '["a"]'])
def test_a_json_hint_that_is_no_text_is_named(tmp_path: Path, value: str) -> None:
    line = f'{{"t_s": 1, "hint": {value}, "exec_s": 1, "load_s": 1}}'
    assert refusal(written(tmp_path, line, "t.jsonl")).startswith(", row 1: hint: ")


@pytest.mark.parametrize("field", ["t_s", "hint", "exec_s", "load_s"])
def test_a_column_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    message = refusal(written(tmp_path, FIVE.replace(field, "other", 1)))
    assert message.startswith(f", row 1: {field}: is missing")
    assert "t_s, hint, exec_s, load_s, size_bytes, client" in message


@pytest.mark.parametrize("line", ['{"t_s": 1', "[1, 2]", "7", "{" * 100_000, '{"a":' * 100_000])
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str) -> None:
    good = '{"t_s": 0, "hint": "a", "exec_s": 1, "load_s": 1}\n'
    assert refusal(written(tmp_path, good + line, "t.jsonl")).startswith(", row 2: not a JSON object (")


def test_a_row_that_is_no_csv_is_named(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, FIVE + '40,"a"b,1,1,1,x\n'))
    assert message.startswith(", row 6: not a row of CSV (")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv.gz", FIVE.encode()),
        ("t.csv.gz", gzip.compress(FIVE.encode(), mtime=0)[:-12]),
        ("t.csv.gz", gzip.compress(FIVE.encode(), mtime=0)[:14] + b"\xff" * 30),
        ("t.csv", b"t_s,hint\n\xff\xfe"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    assert refusal(written(tmp_path, content, name)).startswith(": cannot be read (")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv") == ": cannot be read (No such file or directory)"
    assert refusal(tmp_path) == ": cannot be read (Is a directory)"


@pytest.mark.parametrize("content", ["", "\n\n", "t_s,hint,exec_s,load_s\n"])
def test_a_trace_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    assert refusal(written(tmp_path, content)).startswith(": has no rows")


@on_files
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: ("{" + t).encode())))
def test_whatever_the_bytes_it_is_a_trace_or_one_line(tmp_path: Path, content: bytes) -> None:
    for name in ("t.csv", "t.csv.gz"):
        path = written(tmp_path, content, name)
        try:
            assert read_trace(path)
        except ConfigError as error:
            assert str(error).startswith(f"trace {path}")  # noqa: PT017 - either outcome is right
            assert "\n" not in str(error)  # noqa: PT017


cell = st.one_of(st.sampled_from(["", "1", "1e3", "-1", "nan", "a", '"', "{", "0x1"]), st.text(max_size=5))


@on_files
@given(rows=st.lists(st.lists(cell, min_size=4, max_size=7), min_size=1, max_size=4))
def test_whatever_the_cells_every_request_that_is_read_has_sane_costs(
    tmp_path: Path, rows: list[list[str]]
) -> None:
    content = "t_s,hint,exec_s,load_s,size_bytes,client\n" + "\n".join(map(",".join, rows))
    path = written(tmp_path, content.encode(errors="surrogatepass"))
    try:
        jobs = read_trace(path)
    except ConfigError as error:
        assert "row " in str(error) or "has no rows" in str(error)  # noqa: PT017
        return
    assert all(0 <= cost < float("inf") for job in jobs for cost in (job.exec_s, job.load_s, job.size_bytes))
