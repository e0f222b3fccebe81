"""Sizes for people: three digits and a unit, whatever the size."""

from __future__ import annotations

import pytest

from falctl.core.sizes import gib_text, size_text
from falctl.core.types import GiB, MiB


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (1024, "1 KiB"),
        (MiB - 1024, "1023 KiB"),
        (MiB, "1 MiB"),
        (3 * MiB // 2, "2 MiB"),
        (101 * MiB, "101 MiB"),
        (102 * MiB, "0.10 GiB"),
        (3 * GiB // 2, "1.50 GiB"),
        (9.996 * GiB, "10.0 GiB"),
        (1024 * GiB, "1024.0 GiB"),
        (123456 * GiB, "123,456 GiB"),
    ],
)
def test_a_size_has_as_many_digits_as_people_read(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


def test_amounts_beside_each_other_share_one_unit() -> None:
    assert f"{gib_text(61.2 * GiB)} / {gib_text(79.6 * GiB)} GiB" == "61.2 / 79.6 GiB"
    assert gib_text(12 * MiB) == "0.01"
