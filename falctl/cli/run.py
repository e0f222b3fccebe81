"""`falctl run`: one image from the falctl that runs, and what it cost."""

from __future__ import annotations

import json
import re
import sys
import urllib.parse
from email.message import Message
from pathlib import Path
from typing import Any, Final

from falctl.cli.server import ask
from falctl.errors import EXIT_OK, FalctlError, StartError
from falctl.home import find_home, find_instance

_OWNER: Final = "me"
"""Any does; a path has one."""

_SAID_BYTES: Final = 120
"""As much of an answer without an image as tells what it is."""


def run_command(model: str, prompt: str, *, app: str | None, output: Path, options: dict[str, Any]) -> int:
    """Draw, write *output*, print the receipt. Raises FalctlError when the server refuses or none runs."""
    url = find_instance(find_home()).url
    path = "/" if app is None else f"/run/{_OWNER}/{urllib.parse.quote(app, safe='')}"
    body = {"model": model, "prompt": prompt, "output_format": _format(output), **options}
    answer, headers = ask(f"{url}{path}", json.dumps(body).encode(), {"X-Fal-Runner-Hint": _header(model)})
    picture, _ = ask(f"{url}{urllib.parse.urlsplit(_url_in(answer)).path}", None, {})
    _write(output, picture)
    sys.stdout.write(f"{output}: {_receipt(model, headers)}\n")
    return EXIT_OK


def _url_in(answer: bytes) -> str:
    """Return where the image is: under ``images`` or ``image`` as fal's apps have it, or the image is the answer."""
    try:
        said: Any = json.loads(answer)
    except ValueError:
        said = None
    found = said if isinstance(said, dict) else {}
    images = found.get("images")
    image = images[0] if isinstance(images, list) and images else found.get("image", found)
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        msg = (
            "the app answered no image, which is looked for under images, image or url; it said "
            f"{answer[:_SAID_BYTES].decode(errors='replace')!r}"
        )
        raise StartError(msg)
    return url


_VERDICTS: Final = {
    "hit": "hit (was warm)",
    "none": "no cache",
    "join": "join (waited for a load under way)",
    "ram": "miss (loaded from RAM)",
    "disk": "miss (loaded from disk)",
}
_TIMING: Final = re.compile(r"(\w+);dur=([\d.]+)")


def _receipt(model: str, headers: Message) -> str:
    verdict = _VERDICTS.get(headers.get("X-Falctl-Cache", "none"), "miss (loaded)")
    spent = _TIMING.findall(headers.get("Server-Timing", ""))
    times = ", ".join(f"{name} {float(ms) / 1000:.2f} s" for name, ms in spent)
    return f"{model} on runner {headers.get('X-Falctl-Runner', '?')}, {verdict}; {times}"


def _format(output: Path) -> str:
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    try:
        return formats[output.suffix.lower()]
    except KeyError:
        msg = f"-o {output}: the name must end in {', '.join(formats)}"
        raise _UsageError(msg) from None


def _header(model: str) -> str:
    return model if model.isascii() and model.isprintable() else ""


def _write(output: Path, picture: bytes) -> None:
    try:
        output.write_bytes(picture)
    except OSError as error:
        msg = f"-o {output}: cannot be written ({error.strerror})"
        raise _UsageError(msg) from error


class _UsageError(FalctlError):
    exit_code = 2
