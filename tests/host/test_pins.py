"""A runner proves that torch sees its cards, and says in one line what to do when it does not."""

from __future__ import annotations

import pytest

from falctl.host.pins import Seen, look, mismatch

A, B = "GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-11111111-aaaa-bbbb-cccc-000000000002"
MIG = "MIG-22222222-aaaa-bbbb-cccc-000000000003"


def seen(*cards: str) -> Seen:
    """Return what torch says of these cards: it leaves the prefix out."""
    return Seen("2.11.0+cu128", "12.8", tuple(card.partition("-")[2] for card in cards))


@pytest.mark.parametrize("cards", [(A,), (B, A), (MIG,)])
def test_exactly_these_cards_in_this_order_is_right(cards: tuple[str, ...]) -> None:
    assert mismatch(cards, seen(*cards), driver="570.1") is None


def test_a_mig_instance_may_bear_the_name_of_its_card_but_must_be_the_only_one() -> None:
    assert mismatch((MIG,), seen(A), driver="570.1") is None
    assert mismatch((MIG,), seen(A, B), driver="570.1") is not None


@pytest.mark.parametrize(
    ("wanted", "there"), [((A,), (B,)), ((A, B), (B, A)), ((A,), (A, B)), ((A, B), (A,)), ((A,), (MIG,))]
)
def test_anything_else_is_wrong_and_both_are_named(wanted: tuple[str, ...], there: tuple[str, ...]) -> None:
    line = mismatch(wanted, seen(*there), driver="570.1")
    assert line is not None
    assert all(card in line for card in wanted)
    assert all(card.partition("-")[2] in line for card in there)
    assert "driver 570.1" in line
    assert "\n" not in line


def test_no_card_with_a_cuda_build_points_at_the_driver() -> None:
    line = mismatch((A,), Seen("2.11.0+cu128", "12.8", (), "driver too old"), driver="470.2")
    assert line is not None
    for fact in ("driver 470.2", "CUDA 12.8", "driver too old", "update the driver", A):
        assert fact in line


def test_a_cpu_build_of_torch_is_never_a_silent_cpu_runner() -> None:
    line = mismatch((A,), Seen("2.13.0+cpu", None, ()), driver="570.1")
    assert line is not None
    for fact in ("driver 570.1", "2.13.0+cpu", "CUDA none", "install a CUDA build", "--gpus none"):
        assert fact in line


def test_this_machines_torch_can_be_asked() -> None:
    here = look()
    assert here.torch_version
    assert len(here.uuids) == 0 or here.cuda_build is not None
