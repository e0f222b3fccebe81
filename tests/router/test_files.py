"""Stored files: served by their names alone, and deleted in time."""

from __future__ import annotations

import logging
import os
import socket
from array import array
from pathlib import Path

import pytest

from falctl.clock import wall_clock
from falctl.core.lifetimes import Lifetime
from falctl.router.own.files import FileStore
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import PATIENCE_S
from tests.router.harness import Setup, log_of, serving
from tests.wait import until

NAME = "a-name-nobody_can-guess-0123456789.png"


def put(setup: Setup, name: str = NAME, content: bytes = b"picture") -> Path:
    path = setup.home.files / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("ending", "content_type"),
    [("png", "image/png"), ("jpg", "image/jpeg"), ("jpeg", "image/jpeg"), ("webp", "image/webp"),
     ("bin", "application/octet-stream")],
)  # fmt: skip
def test_a_file_is_served_as_what_its_name_says_and_as_nothing_that_runs(
    plain: Setup, ending: str, content_type: str
) -> None:
    name = NAME.replace("png", ending)
    put(plain, name, b"<script>alert(1)</script>")
    reply = ask(plain, "GET", f"/files/{name}")
    assert (reply.status, reply.body) == (200, b"<script>alert(1)</script>")
    assert reply.values("content-type") == [content_type]
    assert reply.values("x-content-type-options") == ["nosniff"]
    assert reply.values("content-security-policy") == ["sandbox"]
    assert "private" in (reply.value("cache-control") or "")
    assert reply.values("x-falctl-origin") == ["router"]
    assert reply.value("x-fal-request-id")


def test_head_tells_the_size(plain: Setup) -> None:
    put(plain, content=b"12345")
    reply = ask(plain, "HEAD", f"/files/{NAME}")
    assert (reply.status, reply.value("content-length"), reply.body) == (200, "5", b"")


def test_a_large_file_is_served_whole(plain: Setup) -> None:
    content = os.urandom(3 << 20)
    put(plain, content=content)
    assert ask(plain, "GET", f"/files/{NAME}").body == content


def test_clients_that_vanish_leave_no_file_open_and_nothing_in_the_log() -> None:
    with serving() as setup:
        put(setup, content=b"x" * (3 << 20))
        for at in range(90):
            asked = request_bytes(f"/files/{NAME}", method="GET")
            with Raw(setup, asked * 20) as raw:
                if at % 3:
                    raw.socket.recv(10)
                # Closing is a reset then, as from a browser that has left the page.
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, array("i", [1, 0]))
        assert setup.router is not None
        folder = Path(f"/proc/{setup.router.process.pid}/fd")
        until(
            lambda: not [fd for fd in folder.iterdir() if NAME in read_link(fd)],
            within_s=PATIENCE_S,
            what="every file closed",
        )
        assert "Traceback" not in log_of(setup), log_of(setup)[:6000]


def read_link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""  # closed meanwhile


def test_an_empty_file_is_served(plain: Setup) -> None:
    put(plain, content=b"")
    assert (ask(plain, "GET", f"/files/{NAME}").status) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/files/",
        "/files/short.png",
        "/files/../token-token-token-token.png",
        "/files/..%2Ftoken-token-token-token.png",
        "/files/%2e%2e/token-token-token-token.png",
        "/files//etc/passwd",
        "/files/%2Fetc%2Fpasswd",
        "/files/....//....//etc/passwd",
        "/files/secret-secret-secret-secret",
        "/files/secret-secret-secret-secret.html",
        "/files/secret-secret-secret-secret.svg",
        "/files/secret-secret-secret-secret.png/..",
        "/files/secret-secret-secret-secret.png%00.png",
        "/files/secret-secret-secret-secret.PNG",
        "/files/folder-folder-folder-folder.png",
        "/files/folder-folder-folder-folder.png/secret-secret-secret-secret.png",
        "/files/link-to-a-secret-link-to-a-secret.png",
        "/files/dangling-dangling-dangling.png",
        "/files/pipe-pipe-pipe-pipe-pipe.png",
        "/files/unknown-unknown-unknown.png",
        "/files/\u0661secret-secret-secret-secret.png".encode().decode("latin-1"),
    ],
)
def test_nothing_else_is_served(plain: Setup, path: str) -> None:
    home = plain.home
    (home.root / "token-token-token-token.png").write_bytes(b"secret")
    for name in (
        "secret-secret-secret-secret",
        "secret-secret-secret-secret.html",
        "secret-secret-secret-secret.svg",
    ):
        (home.files / name).write_bytes(b"secret")
    folder = home.files / "folder-folder-folder-folder.png"
    folder.mkdir(exist_ok=True)
    (folder / "secret-secret-secret-secret.png").write_bytes(b"secret")
    for name, target in (
        ("link-to-a-secret-link-to-a-secret.png", home.root / "token-token-token-token.png"),
        ("dangling-dangling-dangling.png", home.root / "nothing"),
    ):
        if not (home.files / name).is_symlink():
            (home.files / name).symlink_to(target)
    pipe = home.files / "pipe-pipe-pipe-pipe-pipe.png"
    if not pipe.exists():
        os.mkfifo(pipe)
    with Raw(plain, request_bytes("/x", method="GET").replace(b"/x", path.encode("latin-1"), 1)) as raw:
        head = raw.read_until(b"\r\n\r\n")
    assert head.split()[1] in (b"404", b"400"), head
    assert plain.hosts[0].seen == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_files_are_only_read(plain: Setup, method: str) -> None:
    put(plain)
    reply = ask(plain, method, f"/files/{NAME}", body=b"x")
    assert reply.status == 405
    assert reply.json()["error_type"] == "bad_request"
    assert (plain.home.files / NAME).read_bytes() == b"picture"


def test_files_go_when_their_time_is_over() -> None:
    with serving(config={"files": {"keep": 1.0}}) as setup:
        path = put(setup)
        assert ask(setup, "GET", f"/files/{NAME}").status == 200
        until(lambda: not path.exists(), within_s=PATIENCE_S, what="deleted")
        reply = ask(setup, "GET", f"/files/{NAME}")
        assert reply.status == 404
        assert "files.keep" in reply.json()["detail"]


def test_only_old_regular_files_are_swept(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "files"
    folder.mkdir()
    for path in (outside, folder / "old", folder / "young"):
        path.write_bytes(b"x")
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(outside)
    for path in (outside, folder / "old", folder / "sub"):
        os.utime(path, (1000, 1000))
    os.utime(folder / "link", (1000, 1000), follow_symlinks=False)
    assert FileStore(folder, keep_s=60.0).sweep() == 1
    assert outside.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["link", "sub", "young"]


def test_a_file_whose_name_says_when_it_ends_goes_then_whatever_its_age(tmp_path: Path) -> None:
    now = wall_clock().timestamp()
    names = {
        word: NAME.replace(".png", f"{mark}.png")
        for word, mark in (
            ("over", Lifetime(1.0).mark(now - 10)),
            ("longer", Lifetime(7200.0).mark(now)),
            ("for ever", Lifetime(None).mark(now)),
        )
    }
    store = FileStore(tmp_path, keep_s=60.0)
    for word, name in names.items():
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (now, now) if word == "over" else (1000, 1000))
    assert store.open(names["over"]) is None, "not even before it is swept"
    assert store.sweep() == 1
    for word in ("longer", "for ever"):
        found = store.open(names[word])
        assert found is not None
        assert found.content_type == "image/png"
        os.close(found.fd)


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "gone", keep_s=60.0)
    assert store.sweep() == 0
    assert store.open(NAME) is None


def test_a_file_that_cannot_be_deleted_is_logged_once_and_keeps_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "stuck", "z"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (1000, 1000))
    unlink = Path.unlink

    def unlink_or_fail(path: Path) -> None:
        if path.name == "stuck":
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path)

    monkeypatch.setattr(Path, "unlink", unlink_or_fail)
    store = FileStore(tmp_path, keep_s=60.0)
    with caplog.at_level(logging.WARNING):
        assert [store.sweep(), store.sweep()] == [2, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["stuck"]
    assert len(caplog.records) == 1
    assert "stuck" in caplog.text
