"""The runners of a host draw from one copy of a pipeline's bytes, which stays when a runner does not."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from falctl.errors import HostMemoryFullError
from falctl.host.cache.pipeline_store import PipelineStore
from falctl.host.cache.shared_memory import SharedMemory
from tests.host.cache.pipes import loaded, picture
from tests.host.cache.stores import FolderOf, bring, leave, store_of, tiers
from tests.supervisor.memory_server import MemoryServer

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # diffusers' schedulers
)

BUDGET = 64 << 20


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with MemoryServer(BUDGET) as made:
        yield made


def runner(server: MemoryServer, number: int, folder_of: FolderOf) -> tuple[SharedMemory, PipelineStore]:
    memory = SharedMemory(server.connect(number)[1])
    return memory, store_of(folder_of, memory=memory)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_two_runners_draw_the_same_from_one_copy(
    server: MemoryServer, folder_of: FolderOf, name: str
) -> None:
    expected = picture(loaded(folder_of(name)))
    (first_memory, first), (second_memory, second) = (runner(server, n, folder_of) for n in range(2))
    first_pipe = bring(first, name)
    held = server.row
    assert held.used_bytes == held.held_bytes > 0
    second_pipe = bring(second, name)
    assert (server.row.held_bytes, server.row.blocks) == (held.held_bytes, held.blocks)
    assert picture(first_pipe) == picture(second_pipe) == expected
    for _swap in range(3):
        leave(first, name)
        leave(second, name)
        assert tiers(first, name) == tiers(second, name) == {"ram"}
        first.place(name)
        second.place(name)
    leave(first, name, drop=True)
    assert tiers(first, name) == {"disk"}
    assert picture(bring(first, name)) == picture(second_pipe) == expected
    assert server.row.held_bytes == held.held_bytes
    first_memory.close()
    second_memory.close()


def test_what_a_runner_has_read_its_successor_does_not_read_again(
    server: MemoryServer, folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, store = runner(server, 0, folder_of)
    expected = picture(bring(store, "sd15"))
    leave(store, "sd15", drop=True)
    gc.collect()
    server.wait_used(0)
    assert server.row.held_bytes > 0, "no runner has it now"

    def must_not_read(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("falctl.host.cache.components.read_again", must_not_read)
    assert picture(bring(store, "sd15")) == expected
    memory.close()


def test_where_the_budget_has_no_room_a_pipeline_draws_all_the_same(folder_of: FolderOf) -> None:
    expected = picture(loaded(folder_of("sd15")))
    with MemoryServer(1 << 20) as server:
        memory, store = runner(server, 0, folder_of)
        store.construct("sd15")
        assert picture(store.place("sd15")) == expected
        leave(store, "sd15", drop=True)
        with pytest.raises(HostMemoryFullError, match="that all runners share"):
            bring(store, "sd15")
        assert picture(store.place("sd15")) == expected, "its bytes only pass through"
        assert max(row.held_bytes for row in server.rows) <= 1 << 20
        memory.close()


def test_the_weights_of_a_pipeline_are_views_of_shared_pages(
    server: MemoryServer, folder_of: FolderOf
) -> None:
    memory, store = runner(server, 0, folder_of)
    pipe = bring(store, "sd15")
    leave(store, "sd15")
    spans = shared_spans()
    weights = [weight for weight in pipe.unet.parameters() if weight.numel()]
    assert all(any(start <= weight.data_ptr() < end for start, end in spans) for weight in weights)
    memory.close()


def shared_spans() -> list[tuple[int, int]]:
    """Return where blocks are mapped here; all of them read-only and shared."""
    with Path("/proc/self/maps").open(encoding="utf-8") as file:
        lines = [line.split() for line in file if "falctl-weights" in line]
    assert {line[1] for line in lines} == {"r--s"}
    spans = [line[0].split("-") for line in lines]
    return [(int(start, 16), int(end, 16)) for start, end in spans]
