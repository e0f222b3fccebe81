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


INVALID_VALUE, OUT_OF_MEMORY, NOT_REGISTERED, NOT_SUPPORTED = 1, 2, 713, 801


@pytest.fixture
def server() -> Iterator[MemoryServer]:
    with MemoryServer(64 * MB, registers=True) as made:
        yield made


class Card:
    """
    What of CUDA registers memory: at most *regions_max* regions, and as x86 does, none that is mapped read-only.

    *takes_read_only*: but for those that are told to be so.
    """

    def __init__(self, *, regions_max: int = 1000, takes_read_only: bool = False) -> None:
        self.registered: dict[int, tuple[int, bool]] = {}
        self.regions_max = regions_max
        self.takes_read_only = takes_read_only
        self.flushed = 0
        self.reading = False
        """Whether copies may be under way that were queued."""

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        read_only = bool(flags & 8)
        if read_only and not self.takes_read_only:
            return NOT_SUPPORTED
        if not read_only and not access(address).startswith("rw"):
            return INVALID_VALUE
        if len(self.registered) == self.regions_max:
            return OUT_OF_MEMORY
        assert address not in self.registered
        self.registered[address] = (nbytes, read_only)
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        assert access(address), "unregistered after it was unmapped"
        assert not self.reading, "unregistered under a copy"
        return 0 if self.registered.pop(address, None) else NOT_REGISTERED

    def pinning(self) -> Pinning:
        return Pinning(self, flush=self._flush, settle=self._settle)

    def _settle(self) -> None:
        self.reading = False

    def _flush(self) -> None:
        self.flushed += 1


def access(address: int) -> str:
    """Return how *address* is mapped, such as ``rw-s``; "" if it is not."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, how, *_ = line.split()
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return how
    return ""


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
    assert cards[1].registered == {other.mapping.address: (MB, False)}
    assert access(address) == access(other.mapping.address) == "r--s", "a stray write is found all the same"
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
    card = Card(regions_max=0)
    memory = SharedMemory(server.connect(0)[1])
    other = SharedMemory(server.connect(1)[1], pinning=card.pinning())
    for key in ("unet", "vae"):
        filled(memory, key)
        assert obtained(other, key).flat.eq(7).all()
    assert (card.registered, card.flushed) == ({}, 2)
    assert [line.split()[0] for line in caplog.messages] == ["cache.pageable"]
    memory.close()
    other.close()


def test_what_nobody_may_map_writable_is_registered_as_what_it_is_where_that_can_be() -> None:
    with MemoryServer(64 * MB) as server:  # a supervisor that was started for runners on the CPU
        memory = SharedMemory(server.connect(0)[1])
        filled(memory, "unet")
        for number, card in enumerate((Card(), Card(takes_read_only=True)), 1):
            other = SharedMemory(server.connect(number)[1], pinning=card.pinning())
            block = obtained(other, "unet")
            assert access(block.mapping.address) == "r--s"
            expected = {block.mapping.address: (MB, True)} if card.takes_read_only else {}
            assert card.registered == expected
            block.release()
            other.close()
        memory.close()


def test_an_error_of_the_end_of_a_registration_is_taken_off_the_queue() -> None:
    buffer, card = host_buffer(MB), Card()
    end = card.pinning().pin(buffer.data_ptr(), MB, read_only=False)
    assert end is not None
    end()
    assert card.flushed == 0
    end()
    assert card.flushed == 1


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
