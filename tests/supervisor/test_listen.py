"""The addresses that falctl gives to others."""

from __future__ import annotations

import pytest

from falctl.apikeys import hash_key
from falctl.config import ServerConfig
from falctl.supervisor.listen import bind, public_url, url_of


@pytest.mark.parametrize(
    ("host", "hosts", "url"),
    [
        ("127.0.0.1", ("studio.local",), "http://127.0.0.1:8808"),
        ("0.0.0.0", (), "http://127.0.0.1:8808"),
        ("0.0.0.0", ("studio.local", "10.0.0.2"), "http://studio.local:8808"),
        ("::", ("fd00::1",), "http://[fd00::1]:8808"),
    ],
)
def test_links_bear_a_name_that_their_reader_can_reach(host: str, hosts: tuple[str, ...], url: str) -> None:
    server = ServerConfig(host=host, hosts=hosts, api_keys=(hash_key("k"),))
    assert public_url("http://127.0.0.1:8808", server) == url


def test_a_free_port_is_taken_and_told() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
