"""The proxy of fal's JavaScript client: the address in a header is answered as if it had been called."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest

from falctl.apikeys import hash_key
from tests.router.client import Reply, ask
from tests.router.fake_host import PATIENCE_S
from tests.router.harness import Setup, serving
from tests.wait import until

PROXY = "/api/fal/proxy"


def through(
    setup: Setup, target: str, method: str = "POST", *, body: bytes | None = b"{}", **headers: str
) -> Reply:
    given = {"x-fal-target-url": target, "content-type": "application/json"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(setup, method, PROXY, body=body, headers=given | named)


@pytest.mark.parametrize(
    "origin", ["https://queue.fal.run", "http://queue.fal.run:8443", "https://QUEUE.fal.run"]
)
def test_a_job_is_submitted_and_asked_for(plain: Setup, origin: str) -> None:
    submitted = through(plain, f"{origin}/me/app/some/path?x=1&fal_max_queue_length=9").json()
    assert submitted["status"] == "IN_QUEUE"
    base = f"{origin}/me/app/requests/{submitted['request_id']}"
    until(
        lambda: through(plain, f"{base}/status?logs=1", "GET", body=None).json()["status"] == "COMPLETED",
        within_s=PATIENCE_S,
        what="it has ended",
    )
    assert through(plain, base, "GET", body=None).body == b"ok"
    assert through(plain, f"{base}/cancel", "PUT", body=None).json() == {"status": "ALREADY_COMPLETED"}
    seen = plain.hosts[0].seen[-1]
    assert (seen.raw_path, seen.query, seen.values("x-fal-target-url")) == (b"/some/path", b"x=1", [])


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai"])
def test_files_are_sent_to_addresses_of_ours(plain: Setup, host: str) -> None:
    target = f"https://{host}/storage/upload/initiate?storage_type=fal-cdn-v3"
    given = through(plain, target, body=json.dumps({"file_name": "a.png"}).encode()).json()
    assert urlsplit(given["upload_url"]).netloc == f"127.0.0.1:{plain.port}"
    assert urlsplit(given["upload_url"]).path.startswith("/fal/cdn/put/")


def test_the_app_does_not_see_a_token(plain: Setup) -> None:
    assert through(plain, "https://fal.run/me/app?x=1&fal_jwt_token=secret&y=2").status == 200
    assert plain.hosts[0].seen[-1].query == b"x=1&y=2"


def test_a_path_is_taken_as_it_is_written(plain: Setup) -> None:
    through(plain, "https://queue.fal.run/me/app/a%2Fb%20c")
    reply = through(plain, "https://rest.fal.ai/%74okens-of-another-kind")
    assert reply.json()["detail"].startswith("/fal/rest/tokens-of-another-kind stands for a service of fal's")


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("https://example.com/x", 412, "example.com is not on this machine"),
        ("https://fal.run.example.com/x", 412, "is not on this machine"),
        ("https://api.fal.ai/v1/models", 412, "api.fal.ai is not on this machine"),
        ("https://user:pass@fal.run/x", 412, "is no address"),
        ("ftp://fal.run/x", 412, "is no address"),
        ("https://fal.run:99999/x", 412, "is no address"),
        ("https://[fal.run/x", 412, "is no address"),
        ("fal.run/x", 412, "is no address"),
        ("", 412, "is no address"),
        ("https://queue.fal.run/a b/c", 412, "is no address"),
        ("https://rest.fal.ai/billing", 404, "is not on this machine"),
        ("https://v3.fal.media/files/x/y.png", 404, "nothing at POST /fal/cdn/files/x/y.png"),
    ],
)
def test_what_is_not_local_is_refused_with_a_sentence(
    plain: Setup, target: str, status: int, said: str
) -> None:
    reply = through(plain, target)
    assert (reply.status, said in reply.json()["detail"]) == (status, True), reply.body


def test_without_the_header_it_says_what_it_is(plain: Setup) -> None:
    reply = ask(plain, "POST", PROXY, body=b"{}")
    assert (reply.status, "x-fal-target-url" in reply.json()["detail"]) == (400, True)


def test_no_target_leads_to_what_is_not_fals(plain: Setup) -> None:
    for path in ("/../falctl/status", "/%2e%2e/falctl/status", "//falctl/status", "/me/../../falctl/status"):
        assert through(plain, f"https://queue.fal.run{path}", "GET", body=None).status in (400, 404, 405), (
            path
        )


def test_pages_and_keys_are_checked_as_everywhere() -> None:
    config = {"server": {"api_keys": [hash_key("k")], "allow_origins": ["http://page.test"]}}
    with serving(config=config) as setup:
        target = "https://queue.fal.run/me/app"
        assert through(setup, target).status == 401
        assert through(setup, target, authorization="Key k", origin="http://evil.test").status == 403
        allowed = through(setup, target, authorization="Key k", origin="http://page.test")
        assert (allowed.status, allowed.value("access-control-allow-origin")) == (200, "http://page.test")
