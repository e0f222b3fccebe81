"""OpenAI's images API in the router: what an app is asked for, what comes back, and what is refused in whose words."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from falctl.apikeys import hash_key
from falctl.router.edge.call import Call
from falctl.router.edge.connection import STATE_KEY
from falctl.router.passing.inner import InnerRequest
from tests.router.client import Later, Reply, ask, request_bytes
from tests.router.client import Raw as RawClient
from tests.router.fake_host import PATIENCE_S, FakeHost, Gate, Seen, answer
from tests.router.harness import Setup, idle, serving, waits
from tests.wait import until

IMAGES = "/v1/images/generations"
PNG = b"\x89PNG of the test"


def draw(setup: Setup, headers: dict[str, str] | None = None, **asked: Any) -> Reply:
    body = json.dumps({"model": "m", "prompt": "a cat"} | asked).encode()
    return ask(
        setup, "POST", IMAGES, body=body, headers={"content-type": "application/json"} | (headers or {})
    )


def stored(setup: Setup, name: str = "a-picture-that-nobody-can-guess.png") -> str:
    (setup.home.files / name).write_bytes(PNG)
    return f"http://127.0.0.1:{setup.port}/files/{name}"


def says(body: Any, *, status: int = 200) -> Any:
    async def handler(_: Seen, send: Any) -> None:
        await answer(send, json.dumps(body).encode(), status=status)

    return handler


def sent(setup: Setup, number: int = -1) -> Any:
    return json.loads(setup.hosts[0].seen[number].body)


def error_of(reply: Reply) -> dict[str, Any]:
    (key,) = reply.json()
    assert key == "error"
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def is_cancelled(host: FakeHost) -> bool:
    return host.cancelled == host.executing


@pytest.fixture
def pictures(plain: Setup) -> Iterator[Setup]:
    plain.hosts[0].handler = says({"images": [{"url": stored(plain)}], "seed": 7})
    yield plain
    plain.hosts[0].set_hints()


# --- what the app is asked for -----------------------------------------------------------------


def test_an_image_by_url_and_as_base64(pictures: Setup) -> None:
    reply = draw(pictures)
    assert (reply.status, reply.json()["data"]) == (200, [{"url": stored(pictures)}])
    assert reply.json()["created"] > 1_700_000_000
    (data,) = draw(pictures, response_format="b64_json").json()["data"]
    assert base64.b64decode(data["b64_json"]) == PNG


def test_the_app_is_asked_in_its_own_words(pictures: Setup) -> None:
    asked: dict[str, Any] = {
        "size": "512x256", "seed": 5, "quality": "high", "style": "vivid", "user": "u", "moderation": "low",
        "background": "auto", "n": 1, "num_inference_steps": 4, "output_format": "webp", "response_format": "url",
        "stream": False, "partial_images": 0, "negative_prompt": None,
    }  # fmt: skip
    assert draw(pictures, **asked).status == 200
    assert sent(pictures) == {
        "model": "m",
        "prompt": "a cat",
        "width": 512,
        "height": 256,
        "seed": 5,
        "num_inference_steps": 4,
        "output_format": "webp",
    }
    draw(pictures, size="auto")
    assert sent(pictures) == {"model": "m", "prompt": "a cat"}
    assert pictures.hosts[0].seen[-1].raw_path == b"/"


def test_the_model_is_the_hint_unless_the_client_names_another(pictures: Setup) -> None:
    draw(pictures)
    draw(pictures, headers={"x-fal-runner-hint": "other"})
    first, second = pictures.hosts[0].seen[-2:]
    assert (first.values("x-fal-runner-hint"), second.values("x-fal-runner-hint")) == ([b"m"], [b"other"])


def test_several_images_are_several_requests_each_with_a_seed_of_its_own(pictures: Setup) -> None:
    reply = draw(pictures, n=3, seed=10)
    assert len(reply.json()["data"]) == 3
    assert sorted(sent(pictures, -i)["seed"] for i in (1, 2, 3)) == [10, 11, 12]
    assert len({seen.request for seen in pictures.hosts[0].seen[-3:]}) == 3


@pytest.mark.parametrize(
    "said", [{"image": {"url": "data:image/png;base64,QUJD"}}, {"images": ["data:image/png;base64,QUJD"]}]
)
def test_other_shapes_of_answers_are_understood(plain: Setup, said: Any) -> None:
    plain.hosts[0].handler = says(said)
    assert draw(plain, response_format="b64_json").json()["data"] == [{"b64_json": "QUJD"}]


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"prompt": ""}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "0x512"}, "size"),
        ({"size": 512}, "size"),
        ({"seed": "x"}, "seed"),
        ({"seed": int("9" * 4300), "n": 2}, "seed"),
        ({"response_format": "png"}, "response_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"stream": True}, "stream"),
        ({"partial_images": 2}, "partial_images"),
    ],
)
def test_what_is_not_done_is_refused_by_name(pictures: Setup, asked: Any, param: str) -> None:
    reply = draw(pictures, **asked)
    error = error_of(reply)
    assert (reply.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param in error["message"]
    assert not pictures.hosts[0].seen


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(pictures: Setup, body: bytes) -> None:
    reply = ask(pictures, "POST", IMAGES, body=body)
    assert (reply.status, error_of(reply)["param"]) == (400, None)


def test_what_the_app_refuses_is_told_in_openais_words(plain: Setup) -> None:
    detail = [{"loc": ["body", "width"], "msg": "must be a multiple of 8", "type": "x"}]
    plain.hosts[0].handler = says({"detail": detail}, status=422)
    reply = draw(plain, size="9x9")
    assert (reply.status, error_of(reply)["param"]) == (400, "width")
    assert error_of(reply)["message"] == "width: must be a multiple of 8"
    plain.hosts[0].handler = says({"detail": "no such model", "error_type": "model_not_allowed"}, status=404)
    reply = draw(plain)
    assert (reply.status, error_of(reply)["code"]) == (404, "model_not_found")
    plain.hosts[0].handler = says("nonsense", status=500)
    reply = draw(plain)
    assert (reply.status, error_of(reply)["type"]) == (500, "server_error")


@pytest.mark.parametrize(
    "said",
    [
        {},
        [],
        "x",
        {"images": []},
        {"images": {}},
        {"images": [3]},
        {"images": [{"url": ""}]},
        {"image": None},
    ],
)
def test_an_answer_without_images_is_said(plain: Setup, said: Any) -> None:
    plain.hosts[0].handler = says(said)
    reply = draw(plain)
    assert (reply.status, "has no images" in error_of(reply)["message"]) == (502, True)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "http://x/files/../token", "file:///etc/passwd", "/files/no"]
)
def test_nothing_but_a_stored_file_is_read(plain: Setup, url: str) -> None:
    plain.hosts[0].handler = says({"images": [{"url": url}]})
    reply = draw(plain, response_format="b64_json")
    assert (reply.status, "no file of this falctl" in error_of(reply)["message"]) == (502, True)
    assert draw(plain).json()["data"] == [{"url": url}]


def test_a_full_queue_is_429_with_retry_after_and_who_has_no_key_is_told() -> None:
    config = {"queue": {"max": 1}, "server": {"api_keys": [hash_key("k")], "allow_origins": []}}
    gate = Gate()
    with serving(config=config, handler=gate) as setup:
        key = {"authorization": "Bearer k"}
        refused = draw(setup)
        assert (refused.status, error_of(refused)["code"]) == (401, "invalid_api_key")
        page = draw(setup, headers=key | {"origin": "http://evil.test"})
        assert (page.status, error_of(page)["type"]) == (403, "invalid_request_error")
        later = Later()
        body = json.dumps({"model": "m", "prompt": "x"}).encode()
        later.ask(setup, "POST", IMAGES, body=body, headers=key)
        until(lambda: setup.hosts[0].executing, within_s=PATIENCE_S, what="one runs")
        later.ask(setup, "POST", IMAGES, body=body, headers=key)
        waits(setup, 1)
        full = draw(setup, headers=key)
        assert (full.status, error_of(full)["type"], error_of(full)["code"]) == (
            429,
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert int(full.value("retry-after") or 0) >= 1
        gate.opened.set()
        later.all()


def test_other_calls_of_openai_are_refused_with_a_sentence(plain: Setup) -> None:
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/images/edits"),
        ("GET", "/v1/"),
        ("DELETE", "/v1/models/m"),
    ):
        reply = ask(plain, method, path)
        assert reply.status == 404
        assert "of OpenAI's API falctl has images/generations and models" in error_of(reply)["message"]


# --- several together ------------------------------------------------------------------------------


def test_several_images_are_drawn_by_as_many_runners_and_given_up_together() -> None:
    gate = Gate()
    with serving(runners=2, hints=("m",), handler=gate) as setup:
        body = json.dumps({"model": "m", "prompt": "x", "n": 3}).encode()
        with RawClient(setup, request_bytes(IMAGES, b"Content-Type: application/json", body=body)):
            until(
                lambda: all(host.executing for host in setup.hosts.values()),
                within_s=PATIENCE_S,
                what="both runners draw",
            )
            waits(setup, 1)
        waits(setup, 0)  # the client has gone
        for host in setup.hosts.values():
            until(partial(is_cancelled, host), within_s=PATIENCE_S, what="what runs is cancelled")
        gate.opened.set()
        idle(setup)


def test_when_one_fails_the_others_are_cancelled_and_nobody_waits_for_them() -> None:
    gate = Gate()

    async def handler(seen: Seen, send: Any) -> None:
        if json.loads(seen.body)["seed"] == 1:
            await answer(send, json.dumps({"detail": "bad seed"}).encode(), status=400)
        else:
            await gate(seen, send)

    with serving(runners=2, hints=("m",), handler=handler) as setup:
        reply = draw(setup, n=4, seed=0)
        assert (reply.status, error_of(reply)["message"]) == (400, "bad seed")
        waits(setup, 0)
        for host in setup.hosts.values():
            until(partial(is_cancelled, host), within_s=PATIENCE_S, what="what runs is cancelled")
        gate.opened.set()
        idle(setup)


def test_who_leaves_what_has_ended_cancels_nothing() -> None:
    cancelled: list[str] = []

    async def serve(call: Call) -> None:
        call.connection.on_gone = lambda: cancelled.append("ended")
        await call.answer(200, [], b"x")

    async def main() -> None:
        scope = {"headers": [], "state": {STATE_KEY: None}}
        inner = InnerRequest(Call(scope, anyio.sleep_forever, serve), b"/", body=b"{}", headers=[])  # type: ignore[arg-type]
        assert (await inner.answer(serve)).body == b"x"
        inner.leave()

    anyio.run(main)
    assert cancelled == []


def test_a_runner_that_is_lost_is_said() -> None:
    async def handler(_: Seen, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        msg = "it breaks in the middle"
        raise OSError(msg)

    with serving(handler=handler) as setup:
        reply = draw(setup)
        assert (reply.status, "broke off" in error_of(reply)["message"]) == (500, True)
        idle(setup)


# --- models ----------------------------------------------------------------------------------------


def test_models_are_what_the_configuration_allows_and_what_is_resident(tmp_path: Path) -> None:
    for name in ("good-one", "no-pipeline", ".hidden"):
        (tmp_path / name).mkdir()
        if name != "no-pipeline":
            (tmp_path / name / "model_index.json").touch()
    models = {"paths": [str(tmp_path), str(tmp_path / "none")], "allow": ["org/name"]}
    with serving(config={"models": models}) as setup:
        setup.hosts[0].set_hints("digits-ink", "loaded by hand")
        until(lambda: len(listed(setup)) == 7, within_s=PATIENCE_S, what="the hints are known")
        rows = listed(setup)
        assert set(rows) >= {"digits-ink", "digits-classic", "good-one", "org/name", "loaded by hand"}
        resident = {name: row["runners"] for name, row in rows.items() if row["resident"]}
        assert resident == {"digits-ink": [0], "loaded by hand": [0]}
        one = ask(setup, "GET", "/v1/models/org%2Fname")
        assert (one.status, one.json()) == (200, rows["org/name"])
        assert ask(setup, "GET", "/v1/models/org/name").json() == rows["org/name"]
        missing = ask(setup, "GET", "/v1/models/none")
        assert (missing.status, error_of(missing)["code"]) == (404, "model_not_found")


def listed(setup: Setup) -> dict[str, Any]:
    reply = ask(setup, "GET", "/v1/models").json()
    assert reply["object"] == "list"
    return {row["id"]: row for row in reply["data"]}


def test_where_there_are_several_apps_a_models_name_begins_with_its_apps() -> None:
    both = {
        "draw": {"app": "runners.diffusion:AnyModelRunner"},
        "speak": {"app": "runners.echo:Echo"},
    }
    picture = says({"images": ["data:image/png;base64,QUJD"]})
    with serving(
        runners=2, apps={"draw": [0], "speak": [1]}, config={"apps": both}, handler=picture
    ) as setup:
        setup.hosts[1].set_hints("a-voice")
        until(lambda: "speak/a-voice" in listed(setup), within_s=PATIENCE_S, what="the hints are known")
        demos = {f"draw/digits-{kind}" for kind in ("classic", "ink", "ember", "blueprint")}
        assert set(listed(setup)) == {"speak/a-voice", *demos}
        for model, runner, sent_as in (
            ("draw/org/name", 0, "org/name"),
            ("speak/a-voice", 1, "a-voice"),
            ("speak", 1, "speak"),
        ):
            assert draw(setup, model=model).status == 200
            assert json.loads(setup.hosts[runner].seen[-1].body)["model"] == sent_as
        missing = draw(setup, model="digits-ink")
        assert (missing.status, "draw/MODEL" in error_of(missing)["message"]) == (404, True)
