"""A machine with NVIDIA cards that does not exist: writes what tests/fakes/nvml/fake_nvml.c then tells as NVML."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

GiB: Final = 1 << 30
SOURCE: Final = Path(__file__).with_name("fake_nvml.c")

DRIVER_NOT_LOADED: Final = 9
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
LIB_RM_VERSION_MISMATCH: Final = 18
UNKNOWN: Final = 999

DOUBLE_BIT_ECC_EVENT: Final = 2
XID_EVENT: Final = 8

HANG_ALL: Final = 1
HANG_LOAD: Final = 2


@dataclass(frozen=True)
class FakeInstance:
    """A MIG instance."""

    uuid: str
    name: str = "Fake MIG 1g.10gb"
    total_bytes: int = 10 * GiB
    used_bytes: int = 0


@dataclass(frozen=True)
class FakeCard:
    """A card. A negative number: it does not support that question."""

    uuid: str
    name: str = "Fake H100"
    total_bytes: int = 80 * GiB
    used_bytes: int = GiB
    util_pct: int = 0
    temp_c: int = 35
    power_mw: int = 60_000
    limit_mw: int = 700_000
    error: int = 0
    """What every call about it returns; 0: it works."""
    late_error: int = 0
    """What asking for it by its UUID returns: it fails between the start's look at the machine and the next."""
    hang: int = 0
    """Which calls about it block: HANG_ALL, or HANG_LOAD for those about its load alone."""
    mig: bool = False
    xids: int = 0
    """How many XIDs it has told of; -1: it tells of none, ever."""
    xid: int = 0
    """The last one."""
    xid_at: int = 0
    """The instance that it concerns, from 1; 0: the whole card."""
    event: int = XID_EVENT
    """Of which type it is."""
    instances: tuple[FakeInstance, ...] = ()


def card(number: int, **changes: Any) -> FakeCard:
    """Return the card with this *number*; its name, temperature and power tell it from the others."""
    known = {"name": f"Fake H{number}00", "temp_c": 40 + number, "power_mw": 100_000 + number}
    return FakeCard(uuid=f"GPU-{number}fa1c71e-0000-4000-8000-{number:012d}", **{**known, **changes})


def mig_card(number: int, *, instances: int, **changes: Any) -> FakeCard:
    """Return a card in MIG mode; its instances cannot tell their power, temperature and utilisation."""
    slices = tuple(FakeInstance(f"MIG-{number}{i}fa1c71-0000-4000-8000-{i:012d}") for i in range(instances))
    return card(number, mig=True, instances=slices, **changes)


@dataclass
class FakeNvml:
    """The library at *library*, and the machine that it tells of."""

    library: Path
    state: Path
    cards: list[FakeCard]
    driver: str = "999.42"
    init: int = 0
    error: int = 0
    hang: bool = False

    def __post_init__(self) -> None:
        self.write()

    @property
    def uuids(self) -> list[str]:
        return [card.uuid for card in self.cards]

    @property
    def environ(self) -> dict[str, str]:
        """Return what a process needs to find this library instead of the driver's, and this machine in it."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), "FAKE_NVML_STATE": str(self.state)}

    def change(self, number: int, **changes: Any) -> None:
        """Let card *number* be different from now on."""
        self.cards[number] = replace(self.cards[number], **changes)
        self.write()

    def tell_xid(self, number: int, xid: int, *, instance: int = 0, event: int = XID_EVENT) -> None:
        """Let card *number* tell of *xid*, which concerns its MIG *instance* (from 1; 0: all of it)."""
        xids = self.cards[number].xids + 1
        self.change(number, xids=xids, xid=xid, xid_at=instance, event=event)

    def hold(self, *, hang: bool) -> None:
        """Let every call block from now on, or let them all go."""
        self.hang = hang
        self.write()

    def write(self) -> None:
        """Tell the library; a reader sees the old machine or the new one, never half of it."""
        lines = [f"machine driver={self.driver} init={self.init} error={self.error} hang={int(self.hang)}"]
        for each in self.cards:
            lines += [_line("gpu", each), *(_line("mig", i) for i in each.instances)]
        new = self.state.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.replace(self.state)


_NAMES: Final = {
    "uuid": "uuid",
    "name": "name",
    "total_bytes": "total",
    "used_bytes": "used",
    "util_pct": "util",
    "temp_c": "temp",
    "power_mw": "power",
    "limit_mw": "limit",
    "error": "error",
    "late_error": "late_error",
    "hang": "hang",
    "mig": "mig",
    "xids": "xids",
    "xid": "xid",
    "xid_at": "xid_at",
    "event": "event",
}


def _line(kind: str, device: FakeCard | FakeInstance) -> str:
    values = {"util_pct": -1, "temp_c": -1, "power_mw": -1, "limit_mw": -1, **vars(device)}
    words = [f"{name}={_word(values[key])}" for key, name in _NAMES.items() if key in values]
    return " ".join([kind, *words])


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, int) else str(value).replace(" ", "_")


def build(folder: Path) -> Path:
    """Compile the library into *folder*; return its path. Raises: there is no gcc, or it finds an error."""
    library = folder / "libnvidia-ml.so.1"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    command: Sequence[str] = ("gcc", *flags, "-o", str(library), str(SOURCE))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return library
