"""In which way a pipeline runs: the first of the ladder that fits, whatever the sizes, or every number in an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falctl.core.fit import (
    BlockPlan,
    DrawingPeaks,
    PartSize,
    Plan,
    Role,
    TooLarge,
    fit,
    leavers,
    role_of,
)

GB = 10**9
# FLUX.1 in bfloat16 (meta construction): 23.8 GB in 57 blocks, T5-XXL 9.8, CLIP-L 0.25, VAE 0.17.
FLUX = (
    PartSize("text_encoder", GB // 4, "encoder"),
    PartSize("text_encoder_2", 98 * GB // 10, "encoder", blocks=(GB * 4 // 10,) * 24),
    PartSize(
        "transformer", 238 * GB // 10, "denoiser", blocks=(GB * 65 // 100,) * 19 + (GB * 28 // 100,) * 38
    ),
    PartSize("vae", GB * 17 // 100, "decoder"),
)
PEAKS = DrawingPeaks(encode=GB // 5, denoise=GB // 4, decode=46 * GB // 10, decode_tiled=GB)
SMALL = tuple(replace(p, nbytes=p.nbytes // 2, blocks=tuple(b // 2 for b in p.blocks)) for p in FLUX)


def found(available_bytes: int, **kwargs: object) -> Plan:
    plan = fit(FLUX, PEAKS, available_bytes=available_bytes, **kwargs)  # type: ignore[arg-type]
    assert isinstance(plan, Plan)
    return plan


@pytest.mark.parametrize(
    ("available_gb", "name"),
    [
        (40, "whole"),
        (38, "staged"),  # 34.02 + 4.6
        (24.05, "staged"),
        (24, "offloaded"),
        (12, "offloaded"),
        (4, "offloaded, decoded in tiles"),
    ],
)
def test_a_large_pipeline_goes_down_the_ladder_as_the_card_gets_smaller(
    available_gb: float, name: str
) -> None:
    plan = found(int(available_gb * GB))
    assert plan.name == name
    assert plan.nbytes <= available_gb * GB


def test_quantised_weights_come_before_blocks_that_move_and_after_tiles() -> None:
    plan = found(20 * GB, quantised={"fp8": SMALL})
    assert (plan.name, plan.weights) == ("fp8 weights, staged", "fp8")
    assert found(22 * GB, quantised={"fp8": SMALL}).name == "fp8 weights, whole"
    assert found(24_050 * 10**6, quantised={"fp8": SMALL}).name == "staged"
    assert found(6 * GB, quantised={"fp8": SMALL}).name == "fp8 weights, offloaded"


def test_quantised_weights_that_are_loaded_stay_for_as_long_as_they_fit() -> None:
    quantised = {"fp8": SMALL, "fp4": FLUX[:2]}

    def weights(available_bytes: int, loaded: str | None) -> str | None:
        return found(available_bytes, quantised=quantised, loaded=loaded).weights

    assert [weights(40 * GB, loaded) for loaded in (None, "fp8", "gone")] == [None, "fp8", None]
    assert weights(20 * GB, "fp4") == "fp4"
    assert weights(11 * GB, "fp8") == "fp4", "it no longer fits, another does"
    assert found(20 * GB, quantised={"fp8": SMALL}, loaded="fp8").tried == (
        "fp8 weights, whole takes 20.1 GiB",
    )


def test_blocks_move_of_the_smallest_weights_whichever_are_loaded() -> None:
    for loaded in (None, "fp8"):
        assert found(6 * GB, quantised={"fp8": SMALL}, loaded=loaded).name == "fp8 weights, offloaded"


def test_what_a_quantised_weight_is_computed_with_needs_room_beside_the_weights() -> None:
    parts = (PartSize("unet", 100, "denoiser", beside=30), PartSize("vae", 10, "decoder"))
    peaks = DrawingPeaks(denoise=20, decode=40)
    assert fit(parts, peaks, available_bytes=160) == Plan("whole", 160)
    assert fit(parts, peaks, available_bytes=159) == Plan("staged", 150, tried=("whole takes 160 bytes",))


def test_tiles_are_used_only_where_the_decoder_is_what_does_not_fit() -> None:
    parts = (PartSize("unet", 100, "denoiser"), PartSize("vae", 10, "decoder"))
    peaks = DrawingPeaks(denoise=20, decode=500, decode_tiled=30)
    assert fit(parts, peaks, available_bytes=610) == Plan("whole", 610)
    assert fit(parts, peaks, available_bytes=609) == Plan("staged", 510, tried=("whole takes 610 bytes",))
    tried: tuple[str, ...] = ("whole takes 610 bytes", "staged takes 510 bytes")
    assert fit(parts, peaks, available_bytes=509) == Plan("whole", 140, tiled=True, tried=tried)
    tried += ("whole, decoded in tiles takes 140 bytes",)
    assert fit(parts, peaks, available_bytes=139) == Plan("staged", 120, tiled=True, tried=tried)
    refused = fit(parts, peaks, available_bytes=119)
    assert isinstance(refused, TooLarge)
    assert refused.tried == (
        *tried,
        "staged, decoded in tiles takes 120 bytes",
        "no quantised weights are there that could be used",
        "offloaded takes 510 bytes",
        "offloaded, decoded in tiles takes 120 bytes",
    )
    assert refused.least_bytes == 120


def test_as_many_blocks_stay_as_there_is_room_for_and_two_places_are_for_the_others() -> None:
    part = PartSize("transformer", 100 + 10 * 20, "denoiser", blocks=(20,) * 10)

    def blocks(available_bytes: int) -> BlockPlan:
        plan = fit((part,), DrawingPeaks(denoise=5), available_bytes=available_bytes)
        assert isinstance(plan, Plan)
        assert plan.nbytes == plan.offloaded[0].nbytes + 5
        return plan.offloaded[0]

    assert blocks(304) == BlockPlan("transformer", resident=7, slots=2, nbytes=280, moved_bytes=60)
    assert blocks(285) == BlockPlan("transformer", resident=7, slots=2, nbytes=280, moved_bytes=60)
    assert blocks(284) == BlockPlan("transformer", resident=6, slots=2, nbytes=260, moved_bytes=80)
    assert blocks(145) == BlockPlan("transformer", resident=0, slots=2, nbytes=140, moved_bytes=200)
    assert blocks(144) == BlockPlan("transformer", resident=0, slots=1, nbytes=120, moved_bytes=200)
    assert isinstance(fit((part,), DrawingPeaks(denoise=5), available_bytes=124), TooLarge)


def test_a_component_of_one_block_can_still_come_block_by_block() -> None:
    part = PartSize("transformer", 100, "denoiser", blocks=(90,))
    refused = fit((part,), DrawingPeaks(), available_bytes=99)
    assert isinstance(refused, TooLarge)
    assert refused.tried[-1] == "offloaded takes 100 bytes"


def test_the_slowdown_is_what_a_pass_copies_at_the_rate_that_was_measured() -> None:
    plan = BlockPlan("transformer", resident=0, slots=2, nbytes=0, moved_bytes=3 << 30)
    assert plan.slowdown(None) == "each pass through transformer copies 3.00 GiB to the device"
    assert plan.slowdown(float(6 << 30)).endswith("copies 3.00 GiB to the device, 0.50 s at 6.00 GiB/s")


def test_two_denoisers_count_together_and_encoders_alone() -> None:
    parts = (
        PartSize("text_encoder", 60, "encoder"),
        PartSize("text_encoder_2", 70, "encoder"),
        PartSize("unet", 50, "denoiser"),
        PartSize("controlnet", 40, "denoiser"),
        PartSize("safety_checker", 10, "other"),
    )
    assert fit(parts, DrawingPeaks(), available_bytes=90) == Plan(
        "staged", 90, tried=("whole takes 230 bytes",)
    )


def test_what_others_need_while_they_run_counts_in_every_stage_and_once_in_the_whole() -> None:
    parts = (
        PartSize("text_encoder", 60, "encoder"),
        PartSize("unet", 50, "denoiser"),
        PartSize("lora", 7, "resident"),
    )
    assert fit(parts, DrawingPeaks(denoise=20), available_bytes=137) == Plan("whole", 137)
    staged = fit(parts, DrawingPeaks(denoise=20), available_bytes=136)
    assert staged == Plan("staged", 77, tried=("whole takes 137 bytes",))


def test_a_pipeline_without_a_component_fits_anywhere() -> None:
    assert fit((), DrawingPeaks(decode=9), available_bytes=0) == Plan("whole", 0)


def test_the_names_that_diffusers_gives_components_tell_their_roles() -> None:
    names = (
        "text_encoder_3",
        "image_encoder",
        "transformer_2",
        "unet",
        "vae",
        "movq",
        "safety_checker",
        "lora",
    )
    roles: list[Role] = [role_of(name) for name in names]
    assert roles == ["encoder", "encoder", "denoiser", "denoiser", "decoder", "decoder", "other", "resident"]


def test_the_component_that_ran_last_leaves_first_and_no_more_than_must() -> None:
    present = {"text_encoder": 5, "unet": 10, "vae": 1}
    assert leavers(present, need_bytes=3, free_bytes=3) == ()
    assert leavers(present, need_bytes=3, free_bytes=2) == ("vae",)
    assert leavers(present, need_bytes=9, free_bytes=2) == ("vae", "unet")
    assert leavers(present, need_bytes=99, free_bytes=0) == ("vae", "unet", "text_encoder")


ROLES = st.sampled_from(["encoder", "denoiser", "decoder", "other"])
BLOCKS = st.lists(st.integers(1, 50), max_size=6).map(tuple)
PARTS = st.lists(
    st.builds(lambda role, blocks, rest: (role, blocks, rest), ROLES, BLOCKS, st.integers(0, 50)),
    max_size=6,
).map(
    lambda drawn: tuple(
        PartSize(f"part{i}", rest + sum(blocks), role, blocks) for i, (role, blocks, rest) in enumerate(drawn)
    )
)
SIZES = st.integers(0, 60)


@given(
    parts=PARTS,
    peaks=st.builds(DrawingPeaks, SIZES, SIZES, SIZES, SIZES),
    available_bytes=st.integers(0, 700),
    halves=st.booleans(),
)
def test_whatever_it_answers_fits_and_nothing_gentler_would(
    parts: tuple[PartSize, ...], peaks: DrawingPeaks, available_bytes: int, halves: bool
) -> None:
    small = tuple(replace(p, nbytes=-(-p.nbytes // 2), blocks=()) for p in parts)
    quantised = {"fp8": small} if halves else None
    plan = fit(parts, peaks, available_bytes=available_bytes, quantised=quantised)
    used = small if isinstance(plan, Plan) and plan.weights else parts
    whole = sum(p.nbytes for p in used)
    of_role = {
        "encoder": peaks.encode,
        "other": peaks.encode,
        "denoiser": peaks.denoise,
        "decoder": peaks.decode,
    }
    if isinstance(plan, TooLarge):
        assert whole + max(of_role.values()) > available_bytes
        assert plan.tried
        assert plan.least_bytes > available_bytes
        return
    assert plan.nbytes <= available_bytes
    if plan.tiled:
        of_role["decoder"] = peaks.decode_tiled
    assert taken(plan, used, of_role) <= plan.nbytes, "counted by hand"
    if plan.how != "whole" and not plan.tiled:
        assert whole + max((of_role[p.role] for p in used), default=0) > available_bytes


def taken(plan: Plan, parts: tuple[PartSize, ...], of_role: dict[str, int]) -> int:
    """The most that is on the device when everything that a plan says is done."""
    away = {block.name: block for block in plan.offloaded}

    def size(part: PartSize) -> int:
        if part.name not in away:
            return part.nbytes
        block = away[part.name]
        moving = part.blocks[block.resident :]
        return part.nbytes - sum(moving) + block.slots * max(moving)

    if plan.how == "whole":
        return sum(map(size, parts)) + max((of_role[p.role] for p in parts), default=0)
    alone = [size(p) + of_role[p.role] for p in parts if p.role in ("encoder", "other")]
    together = [[(size(p), p.role) for p in parts if p.role == role] for role in ("denoiser", "decoder")]
    alone += [sum(n for n, _role in group) + of_role[group[0][1]] for group in together if group]
    return max(alone, default=0)
