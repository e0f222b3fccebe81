"""Files that clients send: in one piece, in parts, by whom, how large, and what is left when it goes wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import threading
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import pytest

from falctl.apikeys import hash_key
from falctl.clock import wall_clock
from falctl.core.lifetimes import ends_at
from falctl.errors import BodyTooLargeError, ConflictError
from falctl.router.fal.uploads import passes
from falctl.router.fal.uploads.passes import GOOD_FOR_S, Passes, end_of
from falctl.router.fal.uploads.store import UploadStore
from falctl.router.own.files import is_name, new_name
from tests.router.client import Raw, Reply, ask, request_bytes
from tests.router.fake_host import PATIENCE_S
from tests.router.harness import Setup, serving
from tests.wait import until

INITIATE = "/fal/rest/storage/upload/initiate"
KEY = "falctl_a-key"


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def address(setup: Setup, name: str = "a.png", kind: str = "image/png", *, multipart: bool = False) -> Any:
    """Return what JavaScript's client is given before it sends a file."""
    body = json.dumps({"file_name": name, "content_type": kind}).encode()
    path = f"{INITIATE}{'-multipart' if multipart else ''}?storage_type=fal-cdn-v3"
    reply = ask(setup, "POST", path, body=body)
    assert reply.status == 200, reply.body
    return reply.json()


def part_path(upload_url: str, what: str) -> str:
    parts = urlsplit(upload_url)
    return f"{parts.path}/{what}?{parts.query}"


def put(setup: Setup, path: str, body: bytes) -> Reply:
    return ask(setup, "PUT", path, body=body)


def complete(setup: Setup, upload_url: str, parts: Any) -> Reply:
    body = json.dumps({"parts": parts}).encode()
    return ask(setup, "POST", part_path(upload_url, "complete"), body=body)


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


# --- in one piece ----------------------------------------------------------------------------------


def test_a_token_lets_python_send_a_file_that_is_then_served(plain: Setup) -> None:
    given = ask(plain, "POST", "/fal/rest/storage/auth/token?storage_type=fal-cdn-v3", body=b"{}").json()
    assert datetime.fromisoformat(given["expires_at"]) > wall_clock()
    headers = {"authorization": f"{given['token_type']} {given['token']}", "x-fal-file-name": "a.PNG"}
    path = path_of(given["base_url"]) + "/files/upload"
    reply = ask(plain, "POST", path, body=b"png bytes", headers=headers)
    url = reply.json()["access_url"]
    assert url.startswith(f"http://127.0.0.1:{plain.port}/files/")
    stored = ask(plain, "GET", path_of(url))
    assert (stored.status, stored.body, stored.value("content-type")) == (200, b"png bytes", "image/png")
    assert stored.value("content-security-policy") == "sandbox"


def test_an_address_lets_javascript_put_a_file_and_put_it_again(plain: Setup) -> None:
    given = address(plain)
    for body in (b"first", b"second"):  # its client tries again when an answer was lost
        assert put(plain, path_of(given["upload_url"]), body).status == 200
    assert ask(plain, "GET", path_of(given["file_url"])).body == b"second"


def test_a_file_of_no_bytes_is_a_file(plain: Setup) -> None:
    given = address(plain)
    assert put(plain, path_of(given["upload_url"]), b"").status == 200
    assert ask(plain, "GET", path_of(given["file_url"])).body == b""


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [
        ("a.png", "", "png"),
        ("evil.html", "text/html", "bin"),
        ("evil.svg", "image/svg+xml", "bin"),
        ("x", "image/jpeg", "jpg"),
        ("x.dat", "audio/wav; rate=1", "wav"),
        ("../../etc/passwd", "text/plain", "txt"),
        ("", "", "bin"),
    ],
)
def test_a_name_is_ours_and_nothing_that_a_browser_would_run(name: str, kind: str, suffix: str) -> None:
    given = new_name(name, kind)
    assert is_name(given)
    assert given.rpartition(".")[2] == suffix
    assert new_name(name, kind) != given


# --- in parts --------------------------------------------------------------------------------------


def test_parts_sent_in_any_order_and_twice_make_one_file(plain: Setup) -> None:
    given = address(plain, multipart=True)
    url = given["upload_url"]
    etags = {}
    for number, body in ((2, b"-old-"), (3, b"c" * 3_000_000), (1, b"a" * 2_000_000), (2, b"-b-")):
        reply = put(plain, part_path(url, str(number)), body)
        assert reply.status == 200, reply.body
        assert reply.json() == {"partNumber": number, "etag": reply.value("etag")}
        etags[number] = reply.value("etag")
    parts = [{"partNumber": number, "etag": etags[number]} for number in (3, 1, 2)]
    for _ in range(2):  # the second asks for what is done
        assert complete(plain, url, parts).status == 200
    whole = ask(plain, "GET", path_of(given["file_url"])).body
    assert whole == b"a" * 2_000_000 + b"-b-" + b"c" * 3_000_000
    assert left_in(plain.home.uploads) == []


def test_python_sends_parts_under_the_files_own_url(plain: Setup) -> None:
    headers = {"x-fal-file-name": "a.mp4", "content-type": "video/mp4"}
    given = ask(plain, "POST", "/fal/cdn/files/upload/multipart", headers=headers).json()
    base = f"{path_of(given['access_url'])}/multipart/{given['uploadId']}"
    first = put(plain, f"{base}/1", b"abc")
    body = json.dumps({"parts": [{"partNumber": 1, "etag": first.value("etag")}]}).encode()
    assert ask(plain, "POST", f"{base}/complete", body=body).status == 200
    stored = ask(plain, "GET", path_of(given["access_url"]))
    assert (stored.body, stored.value("content-type")) == (b"abc", "video/mp4")


def test_a_part_that_comes_when_its_upload_is_whole_is_409_and_changes_nothing(plain: Setup) -> None:
    given = address(plain, multipart=True)
    etag = put(plain, part_path(given["upload_url"], "1"), b"abc").value("etag")
    late = request_bytes(part_path(given["upload_url"], "2"), b"Content-Length: 6", method="PUT")
    name = path_of(given["file_url"]).rpartition("/")[2]
    with Raw(plain, late + b"abc") as raw:
        folder = plain.home.uploads / name
        until(lambda: len(left_in(folder)) == 2, within_s=PATIENCE_S, what="part 2 begun")
        assert complete(plain, given["upload_url"], [{"partNumber": 1, "etag": etag}]).status == 200
        raw.send(b"def")
        assert raw.read_until(b"\r\n").split()[1] == b"409"
    assert ask(plain, "GET", path_of(given["file_url"])).body == b"abc"
    assert [left for left in left_in(plain.home.uploads) if left.startswith(name)] == []


@pytest.mark.parametrize("number", ["0", "10001", "00000000199999999", "01", "\u0661", "-1", "9" * 5000])
def test_a_part_has_a_number_that_a_part_can_have(plain: Setup, number: str) -> None:
    given = address(plain, multipart=True)
    reply = put(plain, part_path(given["upload_url"], quote(number)), b"x")
    assert (reply.status, "from 1 to 10000" in reply.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        "1",
        [{"partNumber": 1}],
        [{"partNumber": 1, "etag": "another"}],
        [{"partNumber": 2, "etag": "x"}],
        [{"partNumber": "1", "etag": "x"}],
        [{"partNumber": int("9" * 4000), "etag": "x"}],
    ],
)
def test_parts_that_are_not_as_they_were_sent_make_nothing(plain: Setup, parts: Any) -> None:
    given = address(plain, multipart=True)
    etag = put(plain, part_path(given["upload_url"], "1"), b"abc").value("etag")
    assert complete(plain, given["upload_url"], parts).status == 400
    twice = [{"partNumber": 1, "etag": etag}] * 2
    assert complete(plain, given["upload_url"], twice).status == 400
    assert ask(plain, "GET", path_of(given["file_url"])).status == 404
    assert complete(plain, given["upload_url"], twice[:1]).status == 200


@pytest.mark.parametrize("what", ["0", "10001", "x", "-1", "1.5", "99999999999999999999"])
def test_a_part_has_a_number(plain: Setup, what: str) -> None:
    given = address(plain, multipart=True)
    assert put(plain, part_path(given["upload_url"], what), b"x").status == 400


def test_what_was_never_begun_cannot_be_completed(plain: Setup) -> None:
    given = address(plain, multipart=True)
    reply = complete(plain, given["upload_url"], [{"partNumber": 1, "etag": "x"}])
    assert (reply.status, "begin anew" in reply.json()["detail"]) == (400, True)


# --- who may ---------------------------------------------------------------------------------------


def test_an_address_that_nobody_was_given_is_refused(plain: Setup) -> None:
    mine, other = address(plain)["upload_url"], address(plain)["upload_url"]
    name, given = urlsplit(other).path, urlsplit(mine).query
    for path in (f"{name}?{given}", name, f"{name}?pass=", f"{name}?pass=fff-{'x' * 32}"):
        assert put(plain, path, b"x").status == 403
    assert put(plain, f"/fal/cdn/put/../../x.png?{given}", b"x").status == 404
    assert put(plain, f"/files/x.png/multipart/{given}/1", b"x").status == 404


def test_where_keys_are_asked_for_a_pass_stands_in_for_one_and_only_for_its_file() -> None:
    with serving(config={"server": {"api_keys": [hash_key(KEY)]}}) as setup:
        body = json.dumps({"file_name": "a.png"}).encode()
        assert ask(setup, "POST", INITIATE, body=body).status == 401
        key = {"authorization": f"Key {KEY}"}
        given = ask(setup, "POST", INITIATE, body=body, headers=key).json()
        assert put(setup, path_of(given["upload_url"]), b"x").status == 200
        assert put(setup, urlsplit(given["upload_url"]).path, b"x").status == 401
        token = ask(setup, "POST", "/fal/rest/storage/auth/token", body=b"{}", headers=key).json()["token"]
        for path, bearer, status in (
            ("/fal/cdn/files/upload", token, 200),
            ("/fal/cdn/files/upload", "fff-" + "x" * 32, 401),
            ("/fal/cdn/files/upload", "", 401),
            ("/fal/rest/storage/auth/token", token, 401),
            ("/", token, 401),
        ):
            headers = {"authorization": f"Bearer {bearer}", "x-fal-file-name": "a.png"}
            assert ask(setup, "POST", path, body=b"{}", headers=headers).status == status, path
        assert ask(setup, "GET", path_of(given["file_url"])).body == b"x"  # who knows the name may read it
        for path in ("/files/", "/files/x.png", "/files", urlsplit(given["upload_url"]).path):
            assert ask(setup, "GET", path).status == 401, path


def test_a_pass_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Passes("secret")
    given = one.make("a")
    assert one.holds(given, "a")
    assert not one.holds(given, "b")
    assert not Passes("other").holds(given, "a")
    later = end_of(given) - timedelta(seconds=1)
    assert later - wall_clock() > timedelta(seconds=GOOD_FOR_S - 60)
    monkeypatch.setattr(passes, "wall_clock", lambda: later)
    assert one.holds(given, "a")
    monkeypatch.setattr(passes, "wall_clock", lambda: end_of(given))
    assert not one.holds(given, "a")
    ends, _, signature = given.partition("-")
    assert not one.holds(f"{int(ends, 16) + 3600:x}-{signature}", "a")


# --- limits ----------------------------------------------------------------------------------------


def test_a_file_that_is_too_large_leaves_nothing() -> None:
    with serving(config={"files": {"max_upload": "2MiB"}}) as setup:
        given = address(setup)
        reply = put(setup, path_of(given["upload_url"]), b"x" * (2 << 20))
        assert reply.status == 200
        given = address(setup)
        reply = put(setup, path_of(given["upload_url"]), b"x" * ((2 << 20) + 1))
        assert (reply.status, "files.max_upload" in reply.json()["detail"]) == (413, True)
        assert ask(setup, "GET", path_of(given["file_url"])).status == 404
        assert left_in(setup.home.uploads) == []


def test_the_bound_is_for_all_parts_together_also_across_a_restart() -> None:
    with serving(config={"files": {"max_upload": "2MiB"}}) as setup:
        url = address(setup, multipart=True)["upload_url"]
        assert put(setup, part_path(url, "1"), b"x" * (1 << 20)).status == 200
        assert put(setup, part_path(url, "2"), b"x" * ((1 << 20) + 1)).status == 413
        assert put(setup, part_path(url, "2"), b"x" * (1 << 20)).status == 200
        assert put(setup, part_path(url, "2"), b"y" * 10).status == 200  # in the place of the former
        assert put(setup, part_path(url, "3"), b"z" * 100).status == 200
        assert setup.router is not None
        setup.router.kill()
        setup.start_router()
        assert put(setup, part_path(url, "4"), b"x" * (1 << 20)).status == 413
        assert put(setup, part_path(url, "4"), b"x" * 100).status == 200
        (folder,) = setup.home.uploads.iterdir()
        assert left_in(folder) == ["1", "2", "3", "4"]


def test_a_file_is_not_held_in_memory() -> None:
    with serving() as setup:
        assert setup.router is not None
        status = Path(f"/proc/{setup.router.process.pid}/status")

        def peak_kb() -> int:
            return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)

        small = address(setup)
        put(setup, path_of(small["upload_url"]), b"x" * (8 << 20))
        before = peak_kb()
        large = address(setup)
        connection = http.client.HTTPConnection("127.0.0.1", setup.port, timeout=PATIENCE_S)
        pieces = (b"x" * (1 << 20) for _ in range(256))
        connection.request("PUT", path_of(large["upload_url"]), body=pieces, encode_chunked=True,
                           headers={"transfer-encoding": "chunked"})  # fmt: skip
        assert connection.getresponse().status == 200
        connection.close()
        assert (
            setup.home.files / urlsplit(large["file_url"]).path.rpartition("/")[2]
        ).stat().st_size == 256 << 20
        assert peak_kb() - before < 64 << 10


def test_a_full_disk_is_said_and_leaves_nothing() -> None:
    with serving() as setup:
        assert setup.router is not None
        whole, parts = address(setup), address(setup, multipart=True)
        small = put(setup, part_path(parts["upload_url"], "1"), b"x" * (3 << 19))
        more = put(setup, part_path(parts["upload_url"], "2"), b"x" * (3 << 19))
        # The kernel refuses to let a file of this process grow further, as it does on a full disk.
        resource.prlimit(setup.router.process.pid, resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY))
        reply = put(setup, path_of(whole["upload_url"]), b"x" * (3 << 20))
        assert (reply.status, reply.json()["error_type"]) == (507, "storage_full")
        assert put(setup, part_path(parts["upload_url"], "3"), b"x" * (3 << 20)).status == 507
        (folder,) = setup.home.uploads.iterdir()
        assert left_in(folder) == ["1", "2"]
        etags = [{"partNumber": n, "etag": r.value("etag")} for n, r in ((1, small), (2, more))]
        assert complete(setup, parts["upload_url"], etags).status == 507
        assert left_in(setup.home.uploads) == []
        assert left_in(setup.home.files) == []
        assert put(setup, path_of(whole["upload_url"]), b"x" * (1 << 20)).status == 200


# --- what is not finished --------------------------------------------------------------------------


def test_a_client_that_leaves_or_falls_silent_leaves_nothing() -> None:
    with serving(config={"server": {"body_timeout": "1s"}}) as setup:
        path = path_of(address(setup)["upload_url"])
        head = request_bytes(path, b"Content-Length: 9000000", method="PUT")
        with Raw(setup, head + b"x" * 3_000_000):
            until(lambda: left_in(setup.home.uploads), within_s=PATIENCE_S, what="a draft is begun")
        until(lambda: not left_in(setup.home.uploads), within_s=PATIENCE_S, what="it is gone")
        with Raw(setup, head + b"x" * 3_000_000) as silent:
            assert b" 408 " in silent.read_until(b"\r\n")
        assert left_in(setup.home.uploads) == []


def test_what_a_killed_router_was_writing_is_gone_and_parts_stay() -> None:
    with serving() as setup:
        assert setup.router is not None
        parts = address(setup, multipart=True)
        etag = put(setup, part_path(parts["upload_url"], "1"), b"abc").value("etag")
        with contextlib.ExitStack() as clients:
            for path in (path_of(address(setup)["upload_url"]), part_path(parts["upload_url"], "2")):
                head = request_bytes(path, b"Content-Length: 9000000", method="PUT")
                clients.enter_context(Raw(setup, head + b"x" * 3_000_000))
            until(lambda: len(left_in(setup.home.uploads)) == 4, within_s=PATIENCE_S, what="two drafts")
            setup.router.kill()
        setup.start_router()
        (folder,) = setup.home.uploads.iterdir()
        assert left_in(folder) == ["1"]
        assert complete(setup, parts["upload_url"], [{"partNumber": 1, "etag": etag}]).status == 200


@pytest.fixture
def store(tmp_path: Path) -> UploadStore:
    one = UploadStore(tmp_path / "uploads", tmp_path / "files", max_bytes=1 << 20)
    one.begin()
    return one


async def bytes_of(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_what_nobody_goes_on_with_is_swept(store: UploadStore, tmp_path: Path) -> None:
    async def send() -> None:
        await store.receive_part("old.png", 1, bytes_of(b"abc"))
        await store.receive_part("new.png", 1, bytes_of(b"abc"))

    anyio.run(send)
    folder = tmp_path / "uploads"
    (folder / "x.tmp").touch()
    for path in (folder / "old.png", folder / "old.png" / "1", folder / "x.tmp"):
        os.utime(path, (1, 1))
    os.utime(folder / "new.png", (1, 1))
    assert store.sweep(3600) == 2
    assert left_in(folder) == ["new.png", "new.png/1"]


def test_while_one_completes_another_is_told_so_and_later_that_it_is_done(tmp_path: Path) -> None:
    reached, gate = threading.Event(), threading.Event()

    class Held(UploadStore):
        def _publish(self, draft: Path, name: str) -> None:
            reached.set()
            assert gate.wait(PATIENCE_S)
            super()._publish(draft, name)

    async def main() -> None:
        store = Held(tmp_path / "uploads", tmp_path / "files", max_bytes=1 << 20)
        store.begin()
        etag = await store.receive_part("a.png", 1, bytes_of(b"abc"))
        async with anyio.create_task_group() as group:
            group.start_soon(store.join, "a.png", [(1, etag)])
            await anyio.to_thread.run_sync(reached.wait, PATIENCE_S)
            with pytest.raises(ConflictError):
                await store.join("a.png", [(1, etag)])
            gate.set()
        await store.join("a.png", [(1, etag)])

    anyio.run(main)
    assert left_in(tmp_path) == ["files", "files/a.png", "uploads"]
    assert (tmp_path / "files" / "a.png").read_bytes() == b"abc"


def test_parts_that_come_at_once_are_bounded_together(store: UploadStore, tmp_path: Path) -> None:
    refused: list[Exception] = []

    async def send(number: int) -> None:
        try:
            await store.receive_part("a.png", number, bytes_of(*[b"x" * (1 << 18)] * 2))
        except BodyTooLargeError as error:
            refused.append(error)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(1, 9):
                group.start_soon(send, number)

    anyio.run(main)
    kept = sum(path.stat().st_size for path in (tmp_path / "uploads" / "a.png").iterdir())
    assert kept <= 1 << 20
    assert kept + len(refused) * (1 << 19) == 8 << 19


# --- the rest of fal -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fal/rest/billing", "/fal/rest/tokensx", "/fal", "/fal/kv/x"])
def test_what_is_not_local_is_refused_with_a_sentence(plain: Setup, path: str) -> None:
    reply = ask(plain, "POST", path, body=b"{}")
    assert (reply.status, reply.json()["error_type"]) == (404, "not_local")
    assert "is not on this machine" in reply.json()["detail"]


def test_storage_has_nothing_else(plain: Setup) -> None:
    reply = ask(plain, "GET", "/fal/rest/storage/list")
    assert reply.status == 404
    assert "of fal's storage there are" in reply.json()["detail"]


# --- how long it is kept ---------------------------------------------------------------------------

FOR_TEN_MINUTES = '{"expiration_duration_seconds": 600, "initial_acl": {"default": "forbid"}}'


def kept_s(url: str) -> float:
    return ends_at(url, otherwise=0.0) - wall_clock().timestamp()


@pytest.mark.parametrize("header", ["X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference"])
@pytest.mark.parametrize("path", ["/fal/cdn/files/upload", "/fal/cdn/files/upload/multipart", INITIATE])
def test_a_client_says_how_long_its_file_is_kept(plain: Setup, path: str, header: str) -> None:
    def send(value: str) -> Reply:
        headers = {header: value, "x-fal-file-name": "a.png"}
        return ask(plain, path=path, body=b"{}", headers=headers)

    told = send(FOR_TEN_MINUTES).json()
    assert 500 < kept_s(told.get("access_url") or told["file_url"]) <= 601
    refused = send("for a while")
    assert (refused.status, refused.json()["error_type"]) == (400, "bad_request")
    assert refused.json()["detail"].startswith(f"{header}: ")


def test_a_file_that_is_kept_for_a_while_is_sent_and_served_as_any_other(plain: Setup) -> None:
    headers = {"X-Fal-Object-Lifecycle-Preference": FOR_TEN_MINUTES}
    told = ask(plain, path=INITIATE, body=b'{"file_name": "a.png"}', headers=headers).json()
    assert put(plain, path_of(told["upload_url"]), b"picture").status == 200
    assert ask(plain, "GET", path_of(told["file_url"])).body == b"picture"
