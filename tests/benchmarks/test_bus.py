"""`python -m benchmarks.bus` copies what it says, on a CPU as on a card."""

from __future__ import annotations

from benchmarks import bus
from falctl.host.cache.device import CpuDevice

NBYTES = 2 * bus.PIECE_BYTES + bus.MiB


def test_every_copy_and_step_is_measured_and_nothing_stays_on_the_device() -> None:
    device = CpuDevice(2 * NBYTES)
    found, others = bus.measured(device, None, nbytes=NBYTES, rounds=1)
    assert list(found) == ["pinned", "registered", "read-only", "pageable", "ring"]
    assert all(seconds > 0 for seconds in found.values())
    assert device.peak_bytes >= NBYTES
    assert device.used_bytes == 0
    tables = bus.tables_of(found, others, nbytes=NBYTES)
    assert tables[0].rows["pinned"]["GB/s#"] == NBYTES / found["pinned"] / 1e9
    assert "bind 2,000 tensors" in tables[1].rows


def test_a_ring_brings_every_byte() -> None:
    device = CpuDevice(NBYTES)
    ours, theirs, _ = bus.filled(NBYTES, None)
    flat = device.allocate(NBYTES)
    bus._in_pieces(flat, ours.flat, device)
    assert flat.eq(1).all()
    assert theirs.flat.eq(1).all()
