"""API keys are random, stored as hashes, and compared without telling where they differ."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl import apikeys


def test_a_new_key_is_the_prefix_and_32_url_safe_characters() -> None:
    assert re.fullmatch(r"falctl_[A-Za-z0-9_-]{32}", apikeys.new_key())


def test_no_two_new_keys_are_alike() -> None:
    assert len({apikeys.new_key() for _ in range(1000)}) == 1000


def test_a_hash_is_sha256_of_the_whole_key() -> None:
    key = apikeys.new_key()
    assert apikeys.hash_key(key) == "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@given(keys=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), stranger=st.text())
def test_exactly_the_hashed_keys_match(keys: list[str], stranger: str) -> None:
    hashes = [apikeys.hash_key(key) for key in keys]
    assert all(apikeys.matches(key, hashes) for key in keys)
    assert apikeys.matches(stranger, hashes) == (stranger in keys)


def test_nothing_matches_when_no_key_is_configured() -> None:
    assert not apikeys.matches("", ())
    assert not apikeys.matches(apikeys.new_key(), ())


def test_a_hash_is_not_accepted_in_place_of_its_key() -> None:
    known = apikeys.hash_key("secret")
    assert not apikeys.matches(known, [known])


@pytest.mark.parametrize("presented", ["\udcff", "é", "\0", "x" * 100_000])
def test_any_text_can_be_presented(presented: str) -> None:
    assert not apikeys.matches(presented, [apikeys.hash_key("secret")])


@pytest.mark.parametrize("presented", ["first", "last", "none of them"])
def test_every_hash_is_compared_whichever_matches(presented: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def counting(left: bytes, right: bytes) -> bool:
        compared.append(right)
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    hashes = [apikeys.hash_key(key) for key in ("first", "second", "last")]
    assert apikeys.matches(presented, hashes) == (presented in ("first", "last"))
    assert compared == [known.encode() for known in hashes]
