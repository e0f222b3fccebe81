"""The file that outlives a router: whole or not at all, ours alone, and never a reason to fail."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from pathlib import Path

import pytest

from falctl.core import learnt
from falctl.core.policies import State
from falctl.core.types import Hint
from falctl.router.dispatch import memory as memory_module
from falctl.router.dispatch.memory import Memory
from tests.wait import until

A = Hint("a")


def learn(state: State) -> None:
    state.costs.executed(A, "card#0", 3.0)
    state.demand.arrived(A, "client", now=1.0)


def kept(path: Path) -> State:
    """Return a state after it was filled, kept and recalled by another memory."""
    state = State()
    memory = Memory(path, {"": state})
    learn(state)
    asyncio.run(memory.keep())
    again = State()
    Memory(path, {"": again}).recall()
    return again


def test_what_was_learnt_comes_back(tmp_path: Path) -> None:
    again = kept(tmp_path / "learnt.json")
    assert again.costs.exec_s(A) == 3.0
    assert again.demand.n == 1


def test_the_file_is_ours_alone_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    path.write_text("old")
    kept(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["learnt.json"]


def test_nothing_is_written_while_nothing_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    state = State()
    memory = Memory(path, {"": state})
    asyncio.run(memory.keep())
    assert not path.exists()
    learn(state)
    asyncio.run(memory.keep())
    path.unlink()
    asyncio.run(memory.keep())
    assert not path.exists()


def test_no_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Memory(tmp_path / "learnt.json", {"": State()}).recall()
    assert caplog.records == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"version": 99}',
        b'{"version": 1, "costs": NaN, "demand": 1e999}',
        b'{"version": 2, "apps": {"another": {"costs": NaN, "demand": {}}}}',
        b"1" * 5000,
        b" " * (1 << 12),
    ],
)
def test_a_file_that_is_none_of_ours_is_ignored_in_one_line(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "FILE_BYTES_MAX", (1 << 12) - 1 if content.isspace() else 1 << 20)
    path = tmp_path / "learnt.json"
    path.write_bytes(content)
    state = State()
    memory = Memory(path, {"": state})
    memory.recall()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"memory.ignored file={path}: ")
    learn(state)
    asyncio.run(memory.keep())
    assert json.loads(path.read_bytes())["version"] == 2


def test_a_disk_that_takes_nothing_is_told_of_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    state = State()
    memory = Memory(folder / "learnt.json", {"": state})
    for _ in range(3):
        learn(state)
        asyncio.run(memory.keep())
    assert [r.getMessage().partition(" ")[0] for r in caplog.records] == ["memory.not_kept"]
    folder.mkdir()
    asyncio.run(memory.keep())
    assert (folder / "learnt.json").exists()


def test_it_is_kept_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "PERIOD_S", 0.01)
    path = tmp_path / "learnt.json"
    state = State()
    memory = Memory(path, {"": state})
    learn(state)

    async def run() -> None:
        keeping = asyncio.ensure_future(memory.keep_for_ever())
        await asyncio.to_thread(until, path.exists, within_s=10.0, what="a file")
        keeping.cancel()

    asyncio.run(run())


def test_each_app_learns_for_itself_and_one_that_does_not_run_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    first, second = State(), State()
    memory = Memory(path, {"first": first, "second": second})
    learn(first)
    asyncio.run(memory.keep())
    alone = State()
    memory = Memory(path, {"second": alone})
    memory.recall()
    assert not alone.demand.n
    learn(alone)
    asyncio.run(memory.keep())
    again = {"first": State(), "second": State()}
    Memory(path, again).recall()
    assert [state.demand.n for state in again.values()] == [1, 1]


def test_a_file_of_an_earlier_version_is_taken_over_by_one_app_and_ignored_by_several(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "learnt.json"
    state = State()
    learn(state)
    path.write_text(json.dumps({"version": 1, **learnt.dump_app(state.costs, state.demand)}))
    one = State()
    Memory(path, {"x": one}).recall()
    assert one.costs.exec_s(A) == 3.0
    Memory(path, {"x": State(), "y": State()}).recall()
    [record] = caplog.records
    assert "version 1 by an app without a name" in record.getMessage()
