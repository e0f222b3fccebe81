"""How many bytes of request bodies may be held at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ByteBudget:
    """Bytes lent out, at most ``limit_bytes`` at a time. A lower limit takes back nothing that is lent already."""

    limit_bytes: int
    used_bytes: int = 0

    def reserve(self, size_bytes: int) -> bool:
        """Lend *size_bytes* and return True; False, lending nothing, if they do not fit."""
        assert size_bytes >= 0
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Take back *size_bytes* that were lent before."""
        assert 0 <= size_bytes <= self.used_bytes, "more was given back than was lent"
        self.used_bytes -= size_bytes
