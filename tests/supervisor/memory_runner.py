"""
A runner reduced to its host memory, as a process: an order a line on standard input, an answer a line on its output.

    obtain KEY NBYTES   "fill", "filled", or the error
    write VALUE         fill the block with that byte
    seal                declare it complete
    read                the sum of its bytes
    scribble            write to it, whatever becomes of us
    maps                KiB of the block that this process maps, and its share of them
    release             let go of it
"""

from __future__ import annotations

import os
import re
import resource
import socket
import sys
from pathlib import Path

from falctl.errors import FalctlError
from falctl.host.cache.shared_memory import SharedBlock, SharedMemory
from falctl.lifeline import ENV_MEMORY


class Runner:
    def __init__(self) -> None:
        self.memory = SharedMemory(socket.socket(fileno=int(os.environ[ENV_MEMORY])))
        self.blocks: list[SharedBlock] = []

    def obtain(self, key: str, nbytes: str) -> str:
        try:
            block = self.memory.obtain(key, int(nbytes))
        except FalctlError as error:
            return f"{type(error).__name__}: {error}"
        assert isinstance(block, SharedBlock)
        self.blocks.append(block)
        return "filled" if block.filled else "fill"

    def write(self, value: str) -> str:
        self.blocks[-1].flat.fill_(int(value))
        return "written"

    def seal(self) -> str:
        self.blocks[-1].seal()
        return "sealed"

    def read(self) -> str:
        return str(int(self.blocks[-1].flat.sum()))

    def scribble(self) -> str:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.blocks[-1].flat[0] = 99
        return "scribbled"

    def maps(self) -> str:
        start = f"{self.blocks[-1].mapping.address:x}-"
        text = Path("/proc/self/smaps").read_text().partition(f"\n{start}")[2]
        sizes = {
            name: int(kib) for name, kib in re.findall(r"^(Rss|Pss):\s+(\d+) kB$", text, re.MULTILINE)[:2]
        }
        return f"{sizes['Rss']} {sizes['Pss']}"

    def release(self) -> str:
        self.blocks.pop().release()
        return "released"


def main() -> None:
    runner = Runner()
    for line in sys.stdin:
        order, *words = line.split()
        print(getattr(runner, order)(*words), flush=True)


if __name__ == "__main__":
    main()
