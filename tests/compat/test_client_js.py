"""fal's own JavaScript client on Node, pointed at falctl by proxyUrl and by requestMiddleware: each call, each error."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from falctl.apikeys import hash_key
from tests.compat.clients import WITHIN_S, Calling, calling

FOLDER: Final = Path(__file__).parent / "js"
NODE: Final = shutil.which("node")
INSTALLED: Final = (FOLDER / "node_modules" / "@fal-ai" / "client").is_dir()

pytestmark = [
    pytest.mark.process,
    pytest.mark.node,
    pytest.mark.skipif(NODE is None, reason="node is not on PATH: fal's JavaScript client is not tested"),
    pytest.mark.skipif(
        NODE is not None and not INSTALLED,
        reason="npm is not on PATH: `make test` could not install the packages",
    ),
]

MODES = ("proxy", "middleware")
LARGE = 91 * 1024 * 1024
"""The client sends in parts what is over 90 MiB."""


class Js:
    """Calls through one falctl, in one mode."""

    def __init__(self, calling: Calling, mode: str) -> None:
        self.c = calling
        self._mode = mode

    def call(self, name: str, /, **given: Any) -> Any:
        """Return what a call gives: its ``result`` or its ``error``."""
        assert NODE is not None
        arguments = json.dumps({"app": self.c.app, "key": self.c.key, **given})
        done = subprocess.run(
            [NODE, str(FOLDER / "client.mjs"), self._mode, self.c.falctl.url, name, arguments],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def c() -> Iterator[Calling]:
    with calling(config='[runners]\nrestarts_max = 100\nbackoff_min = "100ms"\n') as one:
        yield one


@pytest.fixture(params=MODES)
def js(request: pytest.FixtureRequest, c: Calling) -> Js:
    return Js(c, request.param)


def stored(c: Calling, url: str) -> tuple[str, bytes]:
    assert url.startswith(f"{c.falctl.url}/files/")
    reply = c.http("GET", url.removeprefix(c.falctl.url))
    return reply.headers["content-type"], reply.content


def test_run(js: Js) -> None:
    result = js.call("run", input={"prompt": "x"})["result"]
    assert result["data"]["prompt"] == "x"
    assert result["requestId"] == result["data"]["request_id"]


@pytest.mark.parametrize("mode", ["polling", "streaming"])
def test_subscribe(js: Js, mode: str) -> None:
    result = js.call("subscribe", input={"prompt": "x"}, hint="m", mode=mode)["result"]
    assert (result["data"]["prompt"], result["data"]["hint"]) == ("x", "m")
    assert result["requestId"] == result["data"]["request_id"]
    assert result["seen"][-1] == "COMPLETED"
    assert result["logs"] == ["begins x", "ends x"]


def test_submit_of_a_path_below_the_app(js: Js) -> None:
    result = js.call("submit", app=f"{js.c.app}/sub/path", input={"prompt": "x"}, hint="m", priority="low")[
        "result"
    ]
    assert js.c.fal.get_handle(js.c.app, result["request_id"]).get()["sub"] == "x"


def test_stream(js: Js) -> None:
    assert js.call("stream", input={"prompt": "x"})["result"] == [{"i": i, "prompt": "x"} for i in range(3)]


def test_what_is_not_valid_is_told_field_by_field(js: Js) -> None:
    for call in ("run", "subscribe"):
        error = js.call(call, input={"prompt": "x", "count": -1})["error"]
        assert (error["name"], error["status"]) == ("ValidationError", 422)
        assert error["body"]["detail"][0]["loc"] == ["body", "count"]


def test_an_error_of_the_app_is_its_own(js: Js) -> None:
    error = js.call("run", input={"prompt": "x", "status": 418})["error"]
    assert (error["status"], error["body"]["detail"]) == (418, "as it was asked for")


def test_a_503_is_tried_again(js: Js, tmp_path: Path) -> None:
    result = js.call("subscribe", input={"prompt": "x", "fail_unless": str(tmp_path / "failed")})["result"]
    assert result["data"]["prompt"] == "x"


def test_cancel_of_what_waits_and_what_runs(js: Js, tmp_path: Path) -> None:
    running = {"prompt": "running", "touch": str(tmp_path / "begun"), "until": str(tmp_path / "never")}
    waiting = {"prompt": "waiting", "touch": str(tmp_path / "must-not-begin")}
    result = js.call("cancel", running=running, waiting=waiting)["result"]
    assert (result["before"]["status"], result["before"]["queue_position"]) == ("IN_QUEUE", 0)
    assert all(end["error"] for end in result["ends"])
    assert result["error"] == 499
    assert not (tmp_path / "must-not-begin").exists()


def test_upload(js: Js) -> None:
    url = js.call("upload", bytes=30, name="a.png", type="image/png")["result"]
    assert stored(js.c, url) == ("image/png", b"0123456789" * 3)


def test_upload_in_parts(js: Js) -> None:
    url = js.call("upload", bytes=LARGE, name="a.mp4", type="video/mp4")["result"]
    kind, content = stored(js.c, url)
    assert (kind, len(content)) == ("video/mp4", LARGE)
    assert content == (b"0123456789" * (LARGE // 10 + 1))[:LARGE]


def test_a_blob_in_the_input_is_sent_first_and_the_app_reads_it(js: Js) -> None:
    result = js.call("upload in the input", app=f"{js.c.app}/size", input={"prompt": "x"})["result"]
    assert result["data"] == {"bytes": 12}


@pytest.mark.parametrize("mode", MODES)
def test_where_keys_are_asked_for_its_credentials_are_one(mode: str) -> None:
    key = "falctl_js"
    with calling(config=f'[server]\napi_keys = ["{hash_key(key)}"]\n', key=key) as c:
        js = Js(c, mode)
        assert js.call("subscribe", input={"prompt": "x"})["result"]["data"]["prompt"] == "x"
        url = js.call("upload", bytes=30, name="a.png", type="image/png")["result"]
        assert stored(c, url)[0] == "image/png"
        assert js.call("run", key="wrong", input={"prompt": "x"})["error"]["status"] == 401
