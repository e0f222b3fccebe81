"""Registration with CUDA, as far as it can be seen without a card: what is registered, when, and what if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from falctl.host.cache import pinning
from falctl.host.cache.buffers import host_buffer
from falctl.host.cache.pinning import Pinning, card_pinning
from falctl.host.cache.shared_memory import SharedMemory
from tests.host.cache.test_shared_memory import filled, obtained
from tests.supervisor.memory_server import MemoryServer

MB = 1 << 20


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with MemoryServer(64 * MB) as made:
        yield made


class Card:
    """What of CUDA registers memory: at most *regions_max* regions, perhaps none that is mapped read-only."""

    def __init__(self, *, regions_max: int = 1000, refuses_read_only: bool = False) -> None:
        self.registered: dict[int, tuple[int, bool]] = {}
        self.regions_max = regions_max
        self.refuses_read_only = refuses_read_only
        self.flushed = 0
        self.reading = False
        """Whether copies may be under way that were queued."""

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        read_only = bool(flags & 8)
        if len(self.registered) == self.regions_max or (read_only and self.refuses_read_only):
            return 2
        assert address not in self.registered
        self.registered[address] = (nbytes, read_only)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        assert is_mapped(address), "unregistered after it was unmapped"
        assert not self.reading, "unregistered under a copy"
        del self.registered[address]
        return 0

    def pinning(self) -> Pinning:
        return Pinning(self, flush=self._flush, settle=self._settle)

    def _settle(self) -> None:
        self.reading = False

    def _flush(self) -> None:
        self.flushed += 1


def is_mapped(address: int) -> bool:
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)


def test_what_is_filled_is_registered_with_the_card_until_it_is_unmapped(server: MemoryServer) -> None:
    cards = Card(), Card()
    first, second = (
        SharedMemory(server.connect(number)[1], pinning=card.pinning()) for number, card in enumerate(cards)
    )
    block = obtained(first, "unet")
    assert cards[0].registered == {}, "not before its bytes are there: it may be given up"
    address = block.mapping.address
    block.seal()
    other = obtained(second, "unet")
    assert cards[0].registered == {address: (MB, False)}
    assert cards[1].registered == {other.mapping.address: (MB, True)}
    view = other.flat[:1]
    cards[0].reading = cards[1].reading = True
    block.release()
    other.release()
    assert (cards[0].registered, len(cards[1].registered)) == ({}, 1), "a copy may be under way"
    del view
    assert cards[1].registered == {}
    first.close()
    second.close()


def test_memory_that_cannot_be_registered_is_used_all_the_same_and_told_once(
    server: MemoryServer, caplog: pytest.LogCaptureFixture
) -> None:
    card = Card(refuses_read_only=True)
    memory = SharedMemory(server.connect(0)[1])
    other = SharedMemory(server.connect(1)[1], pinning=card.pinning())
    for key in ("unet", "vae"):
        filled(memory, key)
        assert obtained(other, key).flat.eq(7).all()
    assert (card.registered, card.flushed) == ({}, 2)
    assert [line.split()[0] for line in caplog.messages] == ["cache.pageable"]
    memory.close()
    other.close()


def test_large_memory_is_registered_in_parts_and_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "CHUNK_BYTES", 4 * MB)
    buffer = host_buffer(10 * MB)
    card, full = Card(), Card(regions_max=2)
    end = card.pinning().pin(buffer.data_ptr(), 10 * MB, read_only=False)
    assert [size for size, _ in card.registered.values()] == [4 * MB, 4 * MB, 2 * MB]
    assert end is not None
    end()
    assert card.registered == {}
    assert full.pinning().pin(buffer.data_ptr(), 10 * MB, read_only=False) is None
    assert (full.registered, full.flushed) == ({}, 1)


def test_without_a_card_nothing_is_registered() -> None:
    assert torch.cuda.is_available() or card_pinning() is None
