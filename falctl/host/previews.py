"""Pictures of a request under way: made on the thread that serves it, only if somebody wants them, and not too often."""

from __future__ import annotations

import base64
import io
import logging
from typing import TYPE_CHECKING, Final

from falctl.clock import monotonic_s
from falctl.host.ticket import Ticket
from falctl.toolkit.latents import PREVIEW_SIDE_MAX

if TYPE_CHECKING:
    from falctl.toolkit.steps import Preview

log = logging.getLogger(__name__)

PREVIEW_EVERY_S: Final = 0.5
PREVIEW_BYTES_MAX: Final = 64 << 10
"""Of one as JPEG: noise of the largest size takes 50 KiB."""
_QUALITY: Final = 75


def make_preview(ticket: Ticket, preview: Preview | None) -> bytes | None:
    """Return a JPEG of what *preview* makes, no side over `PREVIEW_SIDE_MAX`; None: nobody wants one now, or it failed."""
    if preview is None or not ticket.previews or monotonic_s() - ticket.preview_at < PREVIEW_EVERY_S:
        return None
    try:
        picture = _encoded(preview)
    except Exception:
        # It is the app's code, or made of what a library hands over; the drawing itself is none the worse for it.
        log.exception("preview.failed request=%s", ticket.request)
        ticket.previews, picture = False, None
    ticket.preview_at = monotonic_s()
    return picture


def _encoded(preview: Preview) -> bytes | None:
    if (image := preview()) is None:
        return None
    image = image.convert("RGB")
    image.thumbnail((PREVIEW_SIDE_MAX, PREVIEW_SIDE_MAX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue() if file.tell() <= PREVIEW_BYTES_MAX else None


def as_text(picture: bytes | None) -> str:
    """Return *picture* as a message bears it."""
    return "" if picture is None else base64.b64encode(picture).decode("ascii")
