"""Memory that was given back is waited for, and not for ever."""

from __future__ import annotations

import pytest

from falctl.host.cache import recovery
from falctl.host.cache.recovery import wait_recovered


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "POLL_S", 0.001)


def test_it_waits_until_most_of_it_is_free() -> None:
    seen = iter([100, 500, 849, 850, 1100])
    assert wait_recovered(lambda: next(seen), before_bytes=100, given_back_bytes=1000)
    assert next(seen) == 1100


def test_it_asks_once_where_the_memory_is_there_at_once_or_none_was_given_back() -> None:
    for given_back in (1000, 0):
        asked: list[int] = []

        def free_bytes(asked: list[int] = asked, free: int = 100 + given_back) -> int:
            asked.append(free)
            return free

        assert wait_recovered(free_bytes, before_bytes=100, given_back_bytes=given_back)
        assert len(asked) == 1


def test_it_gives_up_and_says_so_when_the_memory_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recovery, "RECOVERY_S", 0.01)
    assert not wait_recovered(lambda: 200, before_bytes=100, given_back_bytes=1000)
    assert "device.not_recovered given_back=1000 free_before=100 free_now=200" in caplog.text
