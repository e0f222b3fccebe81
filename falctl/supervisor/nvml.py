"""
NVML, as far as falctl needs it: which cards there are, and how they are.

Every call may block (a hung driver), so all of this runs in `falctl.supervisor.sampler`'s threads or, once, at
start with a deadline. The module ``pynvml`` comes from nvidia-ml-py.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import psutil
import pynvml

from falctl.core.cards import Card
from falctl.errors import StartError

log = logging.getLogger(__name__)

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
        raise _unusable(error) from error
    try:
        cards = [card for index in range(pynvml.nvmlDeviceGetCount()) for card in _cards(index)]
        return Machine(driver=pynvml.nvmlSystemGetDriverVersion(), cards=tuple(cards))
    except pynvml.NVMLError as error:
        raise _unusable(error) from error


def probe_within(within_s: float) -> Machine | None:
    """
    Return what `probe` returns, or raise what it raises, within *within_s* seconds.

    Raises:
        StartError: it did not answer in time.
    """
    answer: Future[Machine | None] = Future()
    # Not an executor: the interpreter waits for its threads at exit, and this one may never return.
    threading.Thread(target=_answer, args=(answer,), name="nvml-probe", daemon=True).start()
    try:
        return answer.result(timeout=within_s)
    except TimeoutError:
        msg = f"NVML did not answer within {within_s:g} s: the NVIDIA driver hangs; see whether nvidia-smi works"
        raise StartError(msg) from None


def _answer(answer: Future[Machine | None]) -> None:
    try:
        answer.set_result(probe())
    except Exception as error:  # noqa: BLE001 - raised again where the answer is waited for
        answer.set_exception(error)


def _unusable(error: Exception) -> StartError:
    return StartError(
        f"NVML cannot be used: {error}; see whether nvidia-smi works, or start with --gpus none"
    )


def sample(uuid: str) -> Sample:
    """
    Return how the card with this UUID is. May block.

    Raises:
        CardLostError: it is gone.
    """
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        used, total = _memory(handle)
    except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_NotFound, pynvml.NVMLError_ResetRequired) as error:
        raise CardLostError(str(error)) from error
    rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    return Sample(
        used_bytes=used,
        total_bytes=total,
        util_pct=None if rates is None else int(rates.gpu),
        temp_c=_ask(lambda h: int(pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)), handle),
        power_w=None if power is None else power / _MILLIWATT,
        power_limit_w=None if limit is None else limit / _MILLIWATT,
    )


def _cards(index: int) -> list[Card]:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        card = _card(index, handle)
    except pynvml.NVMLError as error:
        # As if it were not there; asking for it by name is then an error.
        log.warning("gpu.left_out index=%d %s", index, error)
        return []
    if not _in_mig_mode(handle):
        return [card]
    instances = [replace(i, parent_uuid=card.uuid) for i in _instances(index, handle)]
    return [replace(card, instances=tuple(i.uuid for i in instances), mig_mode=True), *instances]


def _card(index: int, handle: Any) -> Card:
    memory = _ask(_memory, handle)
    return Card(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        total_bytes=0 if memory is None else memory[1],
    )


def _memory(handle: Any) -> tuple[int, int]:
    """Return the bytes used and the bytes there are; of the host where the card has none of its own (GB10, Jetson)."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError_NotSupported:
        host = psutil.virtual_memory()
        return host.total - host.available, host.total
    return int(memory.total - memory.free), int(memory.total)


def _in_mig_mode(handle: Any) -> bool:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def _instances(index: int, handle: Any) -> list[Card]:
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
