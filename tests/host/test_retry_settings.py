"""The forms in which a fal.App may declare its retries."""

from __future__ import annotations

from typing import Any

import pytest

from falctl.errors import ConfigError
from falctl.host.fal.retry_settings import read_retries, read_skips


class RetryConfig:
    """As the SDK's."""

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {"timeout": {"retries": 2}}


def test_a_table_and_the_sdks_own_object_are_read_and_bounded() -> None:
    assert read_retries({"server_error": {"retries": 500}, "timeout": {"retries": 0}}, named="a:B") == {
        "server_error": 10,
        "timeout": 0,
    }
    assert read_retries(RetryConfig(), named="a:B") == {"timeout": 2}
    assert read_retries(None, named="a:B") == {}


@pytest.mark.parametrize(
    "given",
    [
        {},
        [],
        "timeout",
        {"rain": {"retries": 1}},
        {"timeout": 1},
        {"timeout": {}},
        {"timeout": {"retries": True}},
        {"timeout": {"retries": -1}},
        {"timeout": {"retries": 1, "x": 2}},
        {1: {"retries": 1}},
    ],
)
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"APP 'a:B': retry_config is "):
        read_retries(given, named="a:B")


def test_skips_are_conditions() -> None:
    assert read_skips(("timeout",), named="a:B") == ("timeout",)
    assert read_skips(None, named="a:B") == ()
    for given in ("timeout", ["rain"], [1]):
        with pytest.raises(ConfigError, match="skip_retry_conditions is "):
            read_skips(given, named="a:B")
