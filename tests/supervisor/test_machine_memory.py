"""The memory there is for us is that of the smallest cgroup that we are in, in both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from falctl.supervisor import machine_memory
from falctl.supervisor.machine_memory import MachineMemory, shortage_bytes, suggested_bytes

GB = 10**9
MEMINFO = "MemTotal:       8000000 kB\nMemFree:  1 kB\nMemAvailable:   6000000 kB\nHugePages_Total:  0\n"
WHOLE = MachineMemory(8_000_000 * 1024, 6_000_000 * 1024)


class Machine:
    """A /proc and a /sys/fs/cgroup in a folder."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.groups.mkdir()
        (self.proc / "meminfo").write_text(MEMINFO)
        self.belongs("", "")

    def belongs(self, cgroup: str, mountinfo: str) -> None:
        (self.proc / "self" / "cgroup").write_text(cgroup)
        (self.proc / "self" / "mountinfo").write_text(mountinfo.format(at=self.groups))

    def group(self, path: str, **files: object) -> None:
        folder = self.groups / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")

    def v2(self, path: str, limit: object, *, used: int, inactive: int = 0, active: int = 0) -> None:
        stat = f"anon 1\ninactive_file {inactive}\nactive_file {active}"
        self.group(path, memory__max=limit, memory__current=used, memory__stat=stat)

    def read(self) -> MachineMemory:
        return machine_memory.machine_memory(self.proc)


V2 = "30 24 0:26 / {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_cgroups_it_is_the_machines(machine: Machine) -> None:
    assert machine.read() == WHOLE


def test_page_cache_counts_as_available(machine: Machine) -> None:
    machine.belongs("0::/app\n", V2)
    machine.v2("app", 4 * GB, used=3 * GB, inactive=GB, active=GB // 2)
    assert machine.read() == MachineMemory(4 * GB, 4 * GB - 3 * GB + GB + GB // 2)


def test_a_group_without_a_limit_is_limited_by_those_above(machine: Machine) -> None:
    machine.belongs("0::/slice/app\n", V2)
    machine.v2("slice/app", "max", used=GB)
    machine.v2("slice", 2 * GB, used=GB)
    assert machine.read() == MachineMemory(2 * GB, GB)


def test_a_group_with_more_than_the_machine_does_not_count(machine: Machine) -> None:
    machine.belongs("0::/app\n", V2)
    machine.v2("app", 900 * GB, used=GB)
    assert machine.read() == WHOLE


def test_a_container_sees_its_own_group_as_the_root(machine: Machine) -> None:
    machine.belongs("0::/\n", V2)
    machine.v2("", 2 * GB, used=GB)
    assert machine.read() == MachineMemory(2 * GB, GB)


@pytest.mark.parametrize("path", ["/docker/abc", "/../proc"])
def test_a_group_that_lies_outside_of_what_is_mounted_is_read_at_the_mount(
    machine: Machine, path: str
) -> None:
    machine.belongs(f"0::{path}\n", V2)
    machine.v2("", 2 * GB, used=GB)
    assert machine.read() == MachineMemory(2 * GB, GB)


def test_a_mount_may_show_a_part_of_the_tree(machine: Machine) -> None:
    machine.belongs("0::/docker/abc/inner\n", V2.replace(" / ", " /docker/abc "))
    machine.v2("inner", 2 * GB, used=GB)
    assert machine.read() == MachineMemory(2 * GB, GB)


def test_version_1_is_read_by_its_own_names(machine: Machine) -> None:
    machine.belongs(
        "5:devices:/\n4:memory,hugetlb:/app\n0::/\n",
        "31 23 0:28 / {at} rw - tmpfs tmpfs rw,mode=755\n"
        "34 31 0:32 / {at}/devices rw,relatime - cgroup cgroup rw,devices\n"
        "35 31 0:33 / {at}/memory rw,relatime - cgroup cgroup rw,memory,hugetlb\n",
    )
    machine.group(
        "memory/app",
        memory__limit_in_bytes=4 * GB,
        memory__usage_in_bytes=3 * GB,
        memory__stat=f"cache 5\ntotal_inactive_file {GB}\ntotal_active_file 0",
    )
    machine.group("memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GB)
    assert machine.read() == MachineMemory(4 * GB, 2 * GB)


def test_a_group_that_tells_nothing_does_not_count(machine: Machine) -> None:
    machine.belongs("0::/app\n", V2)
    machine.group("app", memory__max=GB, memory__current="soon", memory__stat="")
    assert machine.read() == WHOLE


def test_half_of_what_is_available_may_hold_weights(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_memory.machine_memory, "__defaults__", (machine.proc,))
    assert suggested_bytes() == WHOLE.available_bytes // 2
    (machine.proc / "meminfo").unlink()
    assert suggested_bytes() == 0
    assert shortage_bytes() == 0


def test_others_are_short_when_little_is_available() -> None:
    assert MachineMemory(100 * GB, 100 * GB).short_bytes == 0
    assert MachineMemory(100 * GB, 400 << 20).short_bytes == 112 << 20
    assert MachineMemory(2 * GB, GB // 20).short_bytes == GB // 20, "a twentieth of a small one"
