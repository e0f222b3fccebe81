"""From what an app answers to what OpenAI's clients read: the images, by URL or as base64."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from typing import Any, Final
from urllib.parse import urlsplit

from falctl.errors import AppAnswerError
from falctl.router.openai.wishes import Form
from falctl.router.own.files import FileStore, StoredFile

PICTURE_BYTES_MAX: Final = 64 << 20
_FILES: Final = "/files/"
_DATA: Final = "data:"


async def pictures_of(body: bytes, form: Form, files: FileStore) -> list[dict[str, str]]:
    """
    Return the images that an app answered, each as OpenAI's clients want it.

    Raises:
        AppAnswerError: there is none in it, or one that is not here.
    """
    urls = _urls(body)
    if form == "url":
        return [{"url": url} for url in urls]
    return [{"b64_json": await asyncio.to_thread(_base64, url, files)} for url in urls]


def _urls(body: bytes) -> list[str]:
    """Return the URLs under ``images``, or the one under ``image``, as fal's apps name them."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    found = answer if isinstance(answer, dict) else {}
    images = found.get("images") or [found.get("image")]
    given = [one.get("url") if isinstance(one, dict) else one for one in images if isinstance(images, list)]
    urls = [url for url in given if isinstance(url, str) and url]
    if not urls or len(urls) < len(given):
        msg = 'the app\'s answer has no images: {"images": [{"url": ...}]} or {"image": {"url": ...}} is looked for'
        raise AppAnswerError(msg)
    return urls


def _base64(url: str, files: FileStore) -> str:
    """Blocks."""
    if url.startswith(_DATA):
        return url.partition(",")[2]
    path = urlsplit(url).path
    stored = files.open(path.removeprefix(_FILES)) if path.startswith(_FILES) else None
    if stored is None:
        msg = f"the app's image at {url[:200]} is no file of this falctl; ask for response_format url"
        raise AppAnswerError(msg)
    return base64.b64encode(_read(stored)).decode()


def _read(stored: StoredFile) -> bytes:
    with os.fdopen(stored.fd, "rb") as file:
        content = file.read(PICTURE_BYTES_MAX + 1)
    if len(content) > PICTURE_BYTES_MAX:
        msg = f"the app's image is over {PICTURE_BYTES_MAX >> 20} MiB; ask for response_format url"
        raise AppAnswerError(msg)
    return content
