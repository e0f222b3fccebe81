"""
NVML, as far as falctl needs it: which cards there are, and how they are.

Every call may block (a hung driver), so all of this runs in `falctl.supervisor.sampler`'s thread or, once, at
start with a deadline. The module ``pynvml`` comes from nvidia-ml-py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pynvml

from falctl.core.cards import Card
from falctl.errors import StartError

T = TypeVar("T")

_MILLIWATT: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Machine:
    """The NVIDIA side of this machine."""

    driver: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at one card. None: NVML does not tell (a MIG instance, a Jetson)."""

    used_bytes: int
    total_bytes: int
    util_pct: int | None
    temp_c: int | None
    power_w: float | None
    power_limit_w: float | None


class CardLostError(Exception):
    """NVML says that the card has fallen off the bus or needs a reset."""


def probe() -> Machine | None:
    """
    Return the machine's cards; None when there is no NVIDIA driver. Leaves NVML initialised. May block.

    Raises:
        StartError: there is a driver, but it does not work; names the fix.
    """
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    except pynvml.NVMLError_LibRmVersionMismatch:
        msg = "the NVIDIA driver was upgraded while it is loaded (library and kernel module differ); reboot"
        raise StartError(msg) from None
    except pynvml.NVMLError as error:
        msg = f"NVML cannot be used: {error}; see whether nvidia-smi works"
        raise StartError(msg) from error
    cards = [card for index in range(pynvml.nvmlDeviceGetCount()) for card in _cards(index)]
    return Machine(driver=pynvml.nvmlSystemGetDriverVersion(), cards=tuple(cards))


def sample(uuid: str) -> Sample:
    """
    Return how the card with this UUID is. May block.

    Raises:
        CardLostError: it is gone.
    """
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_NotFound, pynvml.NVMLError_ResetRequired) as error:
        raise CardLostError(str(error)) from error
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    return Sample(
        used_bytes=int(memory.total - memory.free),
        total_bytes=int(memory.total),
        util_pct=None if rates is None else int(rates.gpu),
        temp_c=_ask(lambda h: int(pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)), handle),
        power_w=None if power is None else power / _MILLIWATT,
        power_limit_w=None if limit is None else limit / _MILLIWATT,
    )


def _cards(index: int) -> list[Card]:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        card = _card(index, handle)
    except pynvml.NVMLError:
        return []  # lost already: as if it were not there; asking for it by name is then an error
    instances = [
        Card(index, i.uuid, i.name, i.total_bytes, parent_uuid=card.uuid) for i in _instances(index, handle)
    ]
    whole = Card(index, card.uuid, card.name, card.total_bytes, tuple(i.uuid for i in instances))
    return [whole, *instances]


def _card(index: int, handle: Any) -> Card:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Card(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        total_bytes=0 if memory is None else int(memory.total),
    )


def _instances(index: int, handle: Any) -> list[Card]:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return []
    found = []
    for number in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        with contextlib.suppress(pynvml.NVMLError):
            found.append(_card(index, pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
    return found


def _ask(question: Callable[[Any], T], handle: Any) -> T | None:
    try:
        return question(handle)
    except pynvml.NVMLError:
        return None
