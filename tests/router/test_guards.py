"""Contract 6: who may ask for what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from falctl.apikeys import hash_key
from tests.router.client import Raw, ask, request_bytes
from tests.router.fake_host import answer
from tests.router.harness import ADMIN_TOKEN, Setup, serving

PAGE = "http://localhost:3000"
KEY = "falctl_a-key-of-this-test"


@pytest.fixture(scope="module")
def named() -> Iterator[Setup]:
    with serving(config={"server": {"hosts": ["studio.lan"], "allow_origins": [PAGE]}}) as setup:
        yield setup


@pytest.fixture(scope="module")
def keyed() -> Iterator[Setup]:
    with serving(config={"server": {"api_keys": [hash_key("other"), hash_key(KEY)]}}) as setup:
        yield setup


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8808", "127.9.8.7:1", "localhost", "LocalHost:99", "[::1]", "[::1]:8808"]
)
def test_a_loopback_host_is_served(plain: Setup, host: str) -> None:
    assert ask(plain, headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "128.0.0.1",
        "[::2]",
        "[::ffff:10.0.0.1]",
        "",
        "studio.lan",
        "localhost:80:80",
    ],
)
def test_any_other_host_is_misdirected(plain: Setup, host: str) -> None:
    reply = ask(plain, headers={"host": host})
    assert reply.status == 421
    assert reply.json()["error_type"] == "wrong_host"
    assert reply.value("x-falctl-origin") == "router"
    assert not plain.hosts[0].seen


def test_a_refused_host_is_refused_again_and_a_known_one_known_again(plain: Setup) -> None:
    for host, status in [("evil.example", 421), ("localhost", 200)] * 2:
        assert ask(plain, headers={"host": host}).status == status


def test_two_hosts_are_misdirected_even_if_the_first_is_ours(plain: Setup) -> None:
    with Raw(plain, request_bytes("/", b"Host: evil.example", b"Connection: close")) as raw:
        assert b" 421 " in raw.read_all().splitlines()[0]


def test_no_host_at_all_is_misdirected(plain: Setup) -> None:
    with Raw(plain, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n") as raw:
        assert b" 421 " in raw.read_all().splitlines()[0]


def test_configured_hosts_are_served_with_any_port(named: Setup) -> None:
    assert ask(named, headers={"host": "studio.lan"}).status == 200
    assert ask(named, headers={"host": "Studio.LAN:8808"}).status == 200


def test_a_configured_address_of_ipv6_is_served_in_the_brackets_of_a_host_header() -> None:
    with serving(config={"server": {"hosts": ["fd00::1", "[fd00::2]"]}}) as setup:
        for host, status in (("[fd00::1]", 200), ("[FD00::2]:8808", 200), ("[fd00::3]", 421)):
            assert ask(setup, headers={"host": host}).status == status


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("192.0.2.2:8808", 'hosts = ["192.0.2.2"]'),
        ("[fd00::1]:8808", 'hosts = ["fd00::1"]'),
        ('a"b', 'hosts = ["a\\"b"]'),
        ("a b", "server.hosts"),
    ],
)
def test_a_misdirected_client_is_told_the_line_that_would_allow_it(
    plain: Setup, host: str, line: str
) -> None:
    assert line in ask(plain, headers={"host": host}).json()["detail"]


def test_without_keys_nobody_is_asked_for_one(plain: Setup) -> None:
    assert ask(plain, headers={"authorization": "Key whatever"}).status == 200
    assert plain.hosts[0].seen[-1].values("authorization") == [b"Key whatever"]


@pytest.mark.parametrize("scheme", ["Key", "key", "Bearer"])
def test_a_key_opens(keyed: Setup, scheme: str) -> None:
    assert ask(keyed, headers={"authorization": f"{scheme} {KEY}"}).status == 200


@pytest.mark.parametrize("value", [None, "Key", "Key ", "Key wrong", KEY, f"Basic {KEY}", "Key \xe9"])
def test_no_key_or_a_wrong_one_does_not(keyed: Setup, value: str | None) -> None:
    keyed.hosts[0].seen.clear()
    for path in ("/", "/files/x", "/falctl/status", "/docs", "/nothing"):
        reply = ask(keyed, "GET", path, headers={} if value is None else {"authorization": value})
        assert reply.status == 401, path
        assert reply.json()["error_type"] == "unauthorized"
        assert reply.value("x-fal-error-type") == "unauthorized"
    assert not keyed.hosts[0].seen


@pytest.mark.parametrize("path", ["/health", "/fal/rest/.well-known/jwks.json"])
def test_what_everybody_may_know_asks_for_no_key(keyed: Setup, path: str) -> None:
    assert ask(keyed, "GET", path).status == 200


def test_a_key_for_us_is_not_shown_to_the_app(keyed: Setup) -> None:
    ask(keyed, headers={"authorization": f"Key {KEY}"})
    assert keyed.hosts[0].seen[-1].values("authorization") == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_writes_under_falctl_need_the_admin_token(plain: Setup, method: str) -> None:
    assert ask(plain, method, "/falctl/anything").status == 401
    assert ask(plain, method, "/falctl/anything", headers={"x-falctl-token": "wrong"}).status == 401
    assert ask(plain, method, "/falctl/anything", headers={"authorization": "Bearer wrong"}).status == 401
    assert ask(plain, method, "/falctl/anything", headers={"x-falctl-token": ADMIN_TOKEN}).status == 404
    bearer = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    assert ask(plain, method, "/falctl/anything", headers=bearer).status == 404


def test_an_api_key_is_no_admin_token(keyed: Setup) -> None:
    assert ask(keyed, "POST", "/falctl/x", headers={"authorization": f"Bearer {KEY}"}).status == 401


def test_the_admin_token_opens_status_but_not_the_app(keyed: Setup) -> None:
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
    assert ask(keyed, "GET", "/falctl/status", headers=headers).status == 200
    assert ask(keyed, "POST", "/", headers=headers).status == 401


# --- origins -----------------------------------------------------------------------------------


def test_a_page_of_our_own_and_no_page_at_all_are_served(plain: Setup) -> None:
    own = f"http://127.0.0.1:{plain.port}"
    for headers in ({}, {"origin": own}):
        reply = ask(plain, headers=headers)
        assert reply.status == 200
        assert reply.values("access-control-allow-origin") == []


@pytest.mark.parametrize(
    "origin", [PAGE, "null", "http://localhost", "http://evil.example", "http://127.0.0.1:1"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("GET", "/falctl/status"), ("GET", "/health")])
def test_a_foreign_page_is_refused(plain: Setup, origin: str, method: str, path: str) -> None:
    reply = ask(plain, method, path, headers={"origin": origin})
    assert reply.status == 403
    assert reply.json()["error_type"] == "forbidden"
    assert origin in reply.json()["detail"]
    assert reply.values("access-control-allow-origin") == []
    assert not plain.hosts[0].seen


@pytest.mark.parametrize("path", ["/", "/health", "/falctl/version", "/files/none", "/run/x"])
def test_an_allowed_page_may_read_every_answer(named: Setup, path: str) -> None:
    reply = ask(named, "GET", path, headers={"origin": PAGE})
    assert reply.values("access-control-allow-origin") == [PAGE]
    assert "x-fal-request-id" in (reply.value("access-control-expose-headers") or "")
    assert "origin" in reply.values("vary")


def test_an_origin_that_is_not_listed_is_refused(named: Setup) -> None:
    assert ask(named, headers={"origin": "http://localhost:3001"}).status == 403


def test_any_page_may_call_with_a_star() -> None:
    with serving(config={"server": {"allow_origins": ["*"]}}) as setup:
        reply = ask(setup, headers={"origin": "http://any.example"})
        assert reply.status == 200
        assert reply.values("access-control-allow-origin") == ["http://any.example"]


def test_a_preflight_is_answered_by_us(named: Setup) -> None:
    named.hosts[0].seen.clear()
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-a, x-b",
    }
    reply = ask(named, "OPTIONS", "/", headers=asked)
    assert reply.status == 204
    assert reply.values("access-control-allow-origin") == [PAGE]
    assert reply.value("access-control-allow-methods") == "POST"
    assert reply.value("access-control-allow-headers") == "x-a, x-b"
    assert not named.hosts[0].seen


def test_a_preflight_of_a_foreign_page_is_refused(plain: Setup) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    assert ask(plain, "OPTIONS", "/", headers=asked).status == 403


def test_a_preflight_needs_no_key_but_what_follows_does() -> None:
    with serving(config={"server": {"allow_origins": [PAGE], "api_keys": [hash_key(KEY)]}}) as setup:
        asked = {"origin": PAGE, "access-control-request-method": "POST"}
        assert ask(setup, "OPTIONS", "/", headers=asked).status == 204
        refused = ask(setup, headers={"origin": PAGE})
        assert refused.status == 401
        assert refused.values("access-control-allow-origin") == [PAGE]


def test_options_without_an_origin_go_to_the_app(plain: Setup) -> None:
    assert ask(plain, "OPTIONS", "/x").status == 200
    assert plain.hosts[0].seen[-1].method == "OPTIONS"


def test_cors_headers_of_the_app_are_replaced(named: Setup) -> None:
    theirs = ((b"access-control-allow-origin", b"*"), (b"Access-Control-Allow-Credentials", b"true"))
    named.hosts[0].handler = lambda _, send: answer(send, headers=theirs)
    without = ask(named)
    assert [name for name, _ in without.headers if name.lower().startswith("access-control")] == []
    reply = ask(named, headers={"origin": PAGE})
    assert reply.values("access-control-allow-origin") == [PAGE]
    assert reply.values("access-control-allow-credentials") == []


# --- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("HEAD", "/"), ("POST", "/metrics"), ("GET", "/%6detrics/a")],
)
def test_paths_kept_for_later_say_so(plain: Setup, method: str, path: str) -> None:
    reply = ask(plain, method, path)
    assert reply.status == 404
    if method != "HEAD":
        assert "is kept for a" in reply.json()["detail"]
    assert not plain.hosts[0].seen


@pytest.mark.parametrize(
    "path", ["/falctl/events", "/falctl/cancel/x", "/%66alctl/events", "/falctl", "/files/"]
)
def test_our_own_paths_never_reach_a_host(plain: Setup, path: str) -> None:
    reply = ask(plain, "GET", path)
    assert reply.status == 404
    assert reply.value("x-falctl-origin") == "router"
    assert plain.hosts[0].cancelled == []


@pytest.mark.parametrize("path", ["/runner", "/healthy", "/v10/x", "/filesystem", "/a/run/b", "//health"])
def test_paths_that_only_begin_alike_are_the_app_s(plain: Setup, path: str) -> None:
    assert ask(plain, "GET", path).status == 200
    assert plain.hosts[0].seen[-1].raw_path == path.encode()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "POST", "QUERY"])
def test_everything_else_goes_to_the_app_with_any_method(plain: Setup, method: str) -> None:
    assert ask(plain, method, "/some/path?a=b&c=%20").status == 200
    seen = plain.hosts[0].seen[-1]
    assert (seen.method, seen.raw_path, seen.query) == (method, b"/some/path", b"a=b&c=%20")


def test_a_request_that_offers_http_2_is_served_whole(plain: Setup) -> None:
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
    with Raw(plain, request_bytes("/x", *offer, body=b"hello")) as raw:
        assert raw.read_until(b"ok").startswith(b"HTTP/1.1 200 ")
        raw.send(request_bytes("/y"))
        assert raw.read_until(b"ok").startswith(b"HTTP/1.1 200 ")
    assert [(seen.raw_path, seen.body) for seen in plain.hosts[0].seen] == [(b"/x", b"hello"), (b"/y", b"")]
    assert plain.hosts[0].seen[0].values("upgrade") == []


def test_nonsense_is_a_bad_request(plain: Setup) -> None:
    with Raw(plain, b"what is this\r\n\r\n") as raw:
        assert b" 400 " in raw.read_all().splitlines()[0]
