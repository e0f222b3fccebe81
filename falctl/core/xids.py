"""
What an XID, an error that NVIDIA's driver tells of a card, means for the runners on that card.

After https://docs.nvidia.com/deploy/xid-errors and the list of those that NVIDIA's device plugin for Kubernetes ignores
as an application's own. One that a new process may survive restarts its runner: if it comes again and again, the limit
on restarts ends that. One that only a reset of the card mends takes its runners out of service.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

XidMeaning: TypeAlias = Literal["application", "restart", "lost", "unknown"]
"""The app's own mistake; another process may do; no process will before the card is reset; not known to us."""

DOUBLE_BIT_ECC: Final = 48
"""What the event of that name is, which bears no number."""

_APPLICATION: Final = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "preemptive cleanup after an earlier error",
    68: "NVDEC0 exception",
    109: "context switch timeout",
}
_RESTART: Final = {
    DOUBLE_BIT_ECC: "double bit ECC error",
    63: "a bad row of memory was recorded",
    92: "high rate of single bit ECC errors",
    94: "contained ECC error",
}
_LOST: Final = {
    64: "a bad row of memory could not be recorded",
    74: "NVLink error",
    79: "it has fallen off the bus",
    95: "uncontained ECC error",
    119: "its system processor (GSP) does not answer",
    120: "error of its system processor (GSP)",
}
_TEXTS: Final = _APPLICATION | _RESTART | _LOST


def meaning(xid: int) -> XidMeaning:
    """Return what *xid* asks for."""
    if xid in _LOST:
        return "lost"
    if xid in _RESTART:
        return "restart"
    return "application" if xid in _APPLICATION else "unknown"


def describe(xid: int) -> str:
    """Return *xid* for a person: ``XID 79, it has fallen off the bus``."""
    text = _TEXTS.get(xid)
    return f"XID {xid}, {text}" if text else f"XID {xid}"
