"""What we make of NVML's answers: the cards of a machine, how each is, and what is wrong with the driver."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from falctl.errors import StartError
from falctl.supervisor.nvml import CardLostError, Machine, Sample, probe, probe_within, sample
from tests.fakes.nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    LIB_RM_VERSION_MISMATCH,
    RESET_REQUIRED,
    UNKNOWN,
    FakeCard,
    FakeNvml,
    GiB,
    card,
    mig_card,
)
from tests.fakes.nvml.fixtures import MakeNvml

REPOSITORY = Path(__file__).parents[2]


class Here:
    """Makes the fake the library of this very process."""

    def __init__(self, make: MakeNvml, patch: pytest.MonkeyPatch) -> None:
        self._make = make
        self._patch = patch

    def __call__(self, *cards: FakeCard, **options: Any) -> FakeNvml:
        fake = self._make(*cards, **options)
        self._patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(fake.library)))
        self._patch.setenv("FAKE_NVML_STATE", str(fake.state))
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return fake


@pytest.fixture
def machine(make_nvml: MakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    yield Here(make_nvml, monkeypatch)
    pynvml._nvmlGetFunctionPointer_cache.clear()


def probed() -> Machine:
    found = probe()
    assert found is not None
    return found


def test_a_machines_cards_come_in_nvmls_order_with_names_and_memory(machine: Here) -> None:
    fake = machine(card(3), card(1, total_bytes=24 * GiB))
    found = probed()
    assert found.driver == fake.driver == "999.42"
    assert [(c.index, c.uuid, c.name, c.total_bytes) for c in found.cards] == [
        (0, fake.uuids[0], "Fake H300", 80 * GiB),
        (1, fake.uuids[1], "Fake H100", 24 * GiB),
    ]
    assert not any(c.instances or c.parent_uuid for c in found.cards)


def test_a_sample_says_what_the_card_says_now(machine: Here) -> None:
    fake = machine(card(0), card(1))
    assert sample(fake.uuids[1]) == Sample(GiB, 80 * GiB, 0, 41, 100.001, 700.0)
    fake.change(1, used_bytes=7 * GiB, util_pct=93, temp_c=70, power_mw=512_500, limit_mw=600_000)
    assert sample(fake.uuids[1]) == Sample(7 * GiB, 80 * GiB, 93, 70, 512.5, 600.0)
    assert sample(fake.uuids[0]).used_bytes == GiB


def test_what_a_card_does_not_tell_is_none(machine: Here) -> None:
    fake = machine(card(0, util_pct=-1, temp_c=-1, power_mw=-1, limit_mw=-1))
    assert sample(fake.uuids[0]) == Sample(GiB, 80 * GiB, None, None, None, None)


def test_a_card_without_memory_of_its_own_has_the_hosts(machine: Here) -> None:
    fake = machine(card(0, total_bytes=-1))
    total = psutil.virtual_memory().total
    assert probed().cards[0].total_bytes == total
    seen = sample(fake.uuids[0])
    assert seen.total_bytes == total
    assert 0 < seen.used_bytes < total


@pytest.mark.parametrize("error", [GPU_IS_LOST, RESET_REQUIRED])
def test_a_lost_card_raises_and_the_others_go_on(machine: Here, error: int) -> None:
    fake = machine(card(0), card(1))
    fake.change(0, error=error)
    with pytest.raises(CardLostError, match=r"lost|restart"):
        sample(fake.uuids[0])
    assert sample(fake.uuids[1]).total_bytes == 80 * GiB


def test_a_card_that_has_vanished_is_lost(machine: Here) -> None:
    machine(card(0))
    with pytest.raises(CardLostError):
        sample(card(1).uuid)


def test_an_unknown_error_does_not_mean_that_the_card_is_lost(machine: Here) -> None:
    fake = machine(card(0))
    fake.change(0, error=UNKNOWN)
    with pytest.raises(pynvml.NVMLError):
        sample(fake.uuids[0])


def test_a_card_lost_before_the_start_is_left_out_with_a_line_in_the_log(
    machine: Here, caplog: pytest.LogCaptureFixture
) -> None:
    fake = machine(card(0), card(1, error=GPU_IS_LOST), card(2))
    assert [(c.index, c.uuid) for c in probed().cards] == [(0, fake.uuids[0]), (2, fake.uuids[2])]
    assert "gpu.left_out index=1 GPU is lost" in caplog.text


def test_a_mig_parent_comes_with_its_instances(machine: Here) -> None:
    fake = machine(card(0), mig_card(1, instances=2))
    whole, parent, first, second = probed().cards
    assert whole.uuid == fake.uuids[0]
    assert parent.uuid == fake.uuids[1]
    assert parent.instances == (first.uuid, second.uuid)
    assert {first.parent_uuid, second.parent_uuid} == {parent.uuid}
    assert (first.index, first.name, first.total_bytes) == (1, "Fake MIG 1g.10gb", 10 * GiB)
    assert all(c.uuid.startswith("MIG-") for c in (first, second))


def test_a_mig_instance_tells_its_memory_and_no_power(machine: Here) -> None:
    fake = machine(mig_card(0, instances=1))
    assert sample(fake.cards[0].instances[0].uuid) == Sample(0, 10 * GiB, None, None, None, None)


def test_no_driver_is_no_machine(machine: Here) -> None:
    machine(init=DRIVER_NOT_LOADED)
    assert probe() is None


def test_a_driver_without_cards_is_a_machine_without_cards(machine: Here) -> None:
    machine()
    assert probed().cards == ()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (LIB_RM_VERSION_MISMATCH, "the NVIDIA driver was upgraded while it is loaded .*; reboot"),
        (UNKNOWN, "NVML cannot be used: Unknown Error; see whether nvidia-smi works"),
    ],
)
def test_a_broken_driver_is_one_line_with_the_fix(machine: Here, code: int, says: str) -> None:
    machine(card(0), init=code)
    with pytest.raises(StartError, match=says) as caught:
        probe_within(10.0)
    assert "\n" not in str(caught.value)


def test_a_driver_that_fails_after_its_start_is_one_line_too(machine: Here) -> None:
    machine(card(0), error=UNKNOWN)
    with pytest.raises(StartError, match="NVML cannot be used: Unknown Error"):
        probe()


def test_a_hanging_driver_is_given_up_in_time_and_not_for_ever(machine: Here) -> None:
    fake = machine(card(0))
    fake.hold(hang=True)
    with pytest.raises(StartError, match=r"did not answer within 0\.2 s: the NVIDIA driver hangs"):
        probe_within(0.2)
    fake.hold(hang=False)
    found = probe_within(10.0)
    assert found is not None
    assert found.cards


PROBE = """
from falctl.supervisor.nvml import probe_within
from falctl.errors import StartError
try:
    print(probe_within({within_s}))
except StartError as error:
    print(error)
"""


def probe_elsewhere(environ: dict[str, str], *, within_s: float) -> str:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(within_s=within_s)],
        env={**os.environ, **environ},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout


@pytest.mark.process
def test_a_process_can_leave_while_its_probe_hangs(make_nvml: MakeNvml) -> None:
    fake = make_nvml(card(0))
    fake.hold(hang=True)
    assert "the NVIDIA driver hangs" in probe_elsewhere(fake.environ, within_s=0.2)


@pytest.mark.process
def test_a_library_that_cannot_be_loaded_is_no_machine(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert probe_elsewhere({"LD_LIBRARY_PATH": str(tmp_path)}, within_s=60.0) == "None\n"


@pytest.mark.process
def test_the_loader_finds_the_fake_as_it_finds_the_drivers(make_nvml: MakeNvml) -> None:
    fake = make_nvml(card(0))
    assert fake.uuids[0] in probe_elsewhere(fake.environ, within_s=60.0)
