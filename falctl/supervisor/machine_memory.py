"""
How much memory there is for us: the machine's, or what is left of the smallest cgroup that we are in.

psutil shows the host's memory inside a container too, and who goes by it is ended by the container's limit. What a
cgroup has available is its limit less what it uses, page cache not counted, for the kernel drops that first. All
groups from ours up to the root count, and version 1 of cgroups as well as version 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 512 << 20
"""With less than this available, or a twentieth of the whole, others are short of memory."""

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """As of one moment."""

    total_bytes: int
    available_bytes: int

    @property
    def short_bytes(self) -> int:
        """Return how much is missing of what should always be available; 0: nothing."""
        return max(0, min(RESERVE_BYTES, self.total_bytes // 20) - self.available_bytes)


@dataclass(frozen=True, slots=True)
class _Version:
    """The files of one version of cgroups, and what of ``memory.stat`` is page cache."""

    limit: str
    used: str
    cache: tuple[str, str]


_V1: Final = _Version(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2: Final = _Version("memory.max", "memory.current", ("inactive_file", "active_file"))


def machine_memory(proc: Path = _PROC) -> MachineMemory:
    """Return what there is now, by the files below *proc*; takes a fraction of a millisecond."""
    seen = _table(proc / "meminfo", scale=1024)
    found = [MachineMemory(seen["MemTotal:"], seen["MemAvailable:"])]
    found += [memory for folder, version in _groups(proc / "self") if (memory := _read(folder, version))]
    return MachineMemory(
        min(memory.total_bytes for memory in found), min(memory.available_bytes for memory in found)
    )


def suggested_bytes() -> int:
    """Return how much of what is available now may hold weights: half; 0 where nobody knows what is."""
    try:
        return max(0, machine_memory().available_bytes // 2)
    except (OSError, KeyError, ValueError):
        return 0


def shortage_bytes() -> int:
    """Return how many bytes should be given back to others now; 0: none, or nobody knows."""
    try:
        return machine_memory().short_bytes
    except (OSError, KeyError, ValueError):
        return 0


def _groups(self: Path) -> Iterator[tuple[Path, _Version]]:
    """Yield the folder of each cgroup with a memory controller that we are in, ours first, the root last."""
    ours = {}
    for line in (self / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        ours["memory" if "memory" in controllers.split(",") else controllers] = path
    for line in (self / "mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        root, mounted = fields.split()[3:5]
        kind, _, options = kind.split(" ", 2)
        if kind == "cgroup2" and "" in ours:
            yield from ((folder, _V2) for folder in _up(ours[""], root=root, mounted=Path(mounted)))
        elif kind == "cgroup" and "memory" in options.split(" ")[-1].split(",") and "memory" in ours:
            yield from ((folder, _V1) for folder in _up(ours["memory"], root=root, mounted=Path(mounted)))


def _up(path: str, *, root: str, mounted: Path) -> Iterator[Path]:
    """Yield the folders of the group *path* and of all above it; some are not there where a container hides them."""
    inside = Path(path)
    folder = mounted / inside.relative_to(root) if inside.is_relative_to(root) else mounted
    while folder != mounted:
        yield folder
        folder = folder.parent
    yield mounted


def _read(folder: Path, version: _Version) -> MachineMemory | None:
    """Return what the group *folder* may have and has left; None: it has no limit, or tells nothing."""
    try:
        limit = int((folder / version.limit).read_text())  # v2: "max"
        used = int((folder / version.used).read_text())
        cache = sum(_table(folder / "memory.stat")[name] for name in version.cache)
    except (OSError, ValueError, KeyError):
        return None
    return MachineMemory(limit, limit - (used - cache))


def _table(path: Path, *, scale: int = 1) -> dict[str, int]:
    """Return a file of lines ``name number ...``."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) * scale for line in lines}
