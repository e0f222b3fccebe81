"""fal's Python client sends files: every way it has, sync and async, and where API keys are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fal_client
import fal_client.client
import pytest
from PIL import Image

from falctl.apikeys import hash_key
from tests.compat.clients import Calling, calling, collect_what_clients_left_open

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:Exception ignored in. <:pytest.PytestUnraisableExceptionWarning"),
]

KEY = "falctl_uploads"
LARGE = bytes(range(256)) * 400


@pytest.fixture(
    scope="module", params=["", f'[server]\napi_keys = ["{hash_key(KEY)}"]\n'], ids=["open", "keys"]
)
def c(request: pytest.FixtureRequest) -> Iterator[Calling]:
    with calling(config=request.param, key=KEY) as one:
        yield one


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    collect_what_clients_left_open()


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client send in parts what it otherwise does from 100 MB on."""
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", 10_000)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", 30_000)


def stored(c: Calling, url: str) -> tuple[str, bytes]:
    assert url.startswith(f"{c.falctl.url}/files/")
    reply = c.http("GET", url.removeprefix(c.falctl.url))
    assert reply.status_code == 200
    return reply.headers["content-type"], reply.content


def test_bytes(c: Calling) -> None:
    url = c.fal.upload(b"abc", "text/plain", "a.txt", lifecycle=fal_client.StorageSettings(expires_in="1h"))
    assert stored(c, url) == ("text/plain; charset=utf-8", b"abc")


def test_bytes_to_the_older_repository(c: Calling) -> None:
    assert stored(c, c.fal.upload(b"abc", "image/png", "a.png", repository="fal")) == ("image/png", b"abc")


def test_a_file_and_an_image(c: Calling, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(LARGE)
    assert stored(c, c.fal.upload_file(path)) == ("application/octet-stream", LARGE)
    assert stored(c, c.fal.upload_image(Image.new("RGB", (8, 8)), "png"))[1].startswith(b"\x89PNG")


@pytest.mark.usefixtures("in_parts")
def test_bytes_and_a_file_in_parts(c: Calling, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(LARGE)
    assert stored(c, c.fal.upload(LARGE, "video/mp4", "a.mp4")) == ("video/mp4", LARGE)
    assert stored(c, c.fal.upload_file(path)) == ("application/octet-stream", LARGE)


@pytest.mark.usefixtures("in_parts")
def test_the_same_without_blocking(c: Calling, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(LARGE)

    async def work(client: fal_client.AsyncClient) -> list[str]:
        return [
            await client.upload(b"abc", "image/webp", "a.webp"),
            await client.upload(LARGE, "image/webp", "a.webp"),
            await client.upload_file(path),
            await client.upload(b"abc", "image/webp", "a.webp", repository="fal"),
        ]

    contents = [stored(c, url)[1] for url in c.run_async(work)]
    assert contents == [b"abc", LARGE, LARGE, b"abc"]


def test_what_was_sent_can_be_read_by_the_app(c: Calling) -> None:
    url = c.fal.upload(b"twelve bytes", "text/plain", "a.txt")
    given = c.fal.submit(c.app, {"prompt": "x", "image": url}, path="/size").get()
    assert given == {"bytes": 12}
