"""What a client is told about how its request was served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from falctl.core.events import Dispatch
from falctl.router.edge.answers import RawHeaders
from falctl.wire import H_CACHE, H_RUNNER, H_TIMINGS

_TIMINGS: Final = H_TIMINGS.encode()
_RUNNER: Final = H_RUNNER.encode()
_CACHE: Final = H_CACHE.encode()
_LOADED: Final = frozenset({"join", "ram", "disk"})
_LOOKED_UP: Final = _LOADED | {"hit"}


@dataclass(frozen=True, slots=True)
class Timings:
    """What the host knew when the headers left; None: it did not know yet."""

    cache: str = ""
    """Where the model came from; "none": no model cache was asked; empty: unknown."""
    load_s: float | None = None
    exec_s: float | None = None

    @property
    def hit(self) -> bool | None:
        """Return whether the model was resident; None if no model cache can tell."""
        return self.cache == "hit" if self.cache in _LOOKED_UP else None

    def after(self, dispatch: Dispatch) -> Timings:
        """Return these with the share that the request had in a load job: the host saw its model resident."""
        if dispatch.cache is None:
            return self
        return replace(self, cache=dispatch.cache, load_s=(self.load_s or 0.0) + dispatch.load_s)

    def server_timing(self, *, queue_s: float) -> bytes:
        """Return the value of a Server-Timing header, in milliseconds, of what is known; a load with where it came from."""
        source = f';desc="{self.cache}"' if self.cache in _LOADED else ""
        parts = [("queue", queue_s, ""), ("load", self.load_s, source), ("exec", self.exec_s, "")]
        return ", ".join(f"{n};dur={s * 1000:.3f}{desc}" for n, s, desc in parts if s is not None).encode()

    def warm(self, dispatch: Dispatch) -> bool:
        """Return whether the runner of *dispatch* was warm, as far as anybody can tell."""
        return dispatch.warm if self.hit is None else self.hit


_UNKNOWN: Final = Timings()


def read_timings(headers: Iterable[tuple[bytes, bytes]]) -> Timings:
    """Return what the host's header says; what is missing or makes no sense is unknown."""
    for name, value in headers:
        if name.lower() == _TIMINGS:
            fields = dict(part.partition("=")[::2] for part in value.decode("latin-1").split(";"))
            cache = fields.get("cache", "")
            return Timings(
                cache=cache if cache in _LOOKED_UP or cache == "none" else "",
                load_s=_seconds(fields.get("load_s")),
                exec_s=_seconds(fields.get("exec_s")),
            )
    return _UNKNOWN


def receipt(dispatch: Dispatch, timings: Timings) -> RawHeaders:
    """Return the headers that tell a client where its request ran, what that found there, and how long each part took."""
    headers = [
        (_RUNNER, str(dispatch.runner).encode()),
        (b"server-timing", timings.server_timing(queue_s=dispatch.waited_s - dispatch.load_s)),
    ]
    if timings.cache:
        headers.append((_CACHE, timings.cache.encode()))
    return headers


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
