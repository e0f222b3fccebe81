"""Repeated blocks told from names, as diffusers and transformers give them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from falctl.core.blocks import Block, NamedBytes, blocks_of


def tensors(**sizes: int) -> list[NamedBytes]:
    return [NamedBytes((name.replace("__", "."),), nbytes) for name, nbytes in sizes.items()]


def test_the_entries_of_lists_are_blocks_and_what_is_in_no_list_is_not() -> None:
    found = blocks_of(
        tensors(
            x_embedder__weight=5,
            transformer_blocks__0__attn__to_q__weight=10,
            transformer_blocks__0__attn__to_out__0__weight=1,
            transformer_blocks__1__attn__to_q__weight=10,
            single_transformer_blocks__0__norm__weight=10,
            proj_out__bias=5,
        )
    )
    assert found == (
        Block("transformer_blocks.0", (1, 2), 11),
        Block("transformer_blocks.1", (3,), 10),
        Block("single_transformer_blocks.0", (4,), 10),
    )


def test_a_short_list_stays() -> None:
    found = blocks_of(tensors(time__0__weight=2, time__2__weight=2, blocks__0__w=50, blocks__1__w=50))
    assert [block.path for block in found] == ["blocks.0", "blocks.1"]


def test_a_parameter_list_has_no_module_to_wait_for() -> None:
    assert blocks_of(tensors(tables__0=10, tables__1=10)) == ()


def test_a_large_block_is_divided_where_lists_hold_most_of_it() -> None:
    unet = tensors(
        conv_in__weight=1,
        up_blocks__0__attentions__0__proj__weight=30,
        up_blocks__0__attentions__1__proj__weight=30,
        up_blocks__0__upsamplers__0__conv__weight=20,
        up_blocks__0__norm__weight=1,
        up_blocks__1__attentions__0__proj__weight=7,
    )
    paths = [block.path for block in blocks_of(unet)]
    assert paths == [
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
        "up_blocks.0.upsamplers.0",
        "up_blocks.1",
    ]


def test_a_large_block_that_is_mostly_in_no_list_stays_one() -> None:
    two = tensors(blocks__0__ff__net__0__weight=20, blocks__0__attn__weight=30, blocks__1__w=50)
    assert [block.path for block in blocks_of(two)] == ["blocks.0", "blocks.1"]


def test_a_tensor_that_is_tied_across_blocks_is_in_none() -> None:
    tied = [
        NamedBytes(("blocks.0.w", "blocks.1.w"), 5),
        NamedBytes(("blocks.0.a", "blocks.0.b"), 5),
        NamedBytes(("embed.weight", "blocks.1.head"), 5),
        NamedBytes(("blocks.1.a",), 5),
    ]
    assert [(block.path, block.members) for block in blocks_of(tied)] == [
        ("blocks.0", (1,)),
        ("blocks.1", (3,)),
    ]


def test_nothing_has_no_blocks() -> None:
    assert blocks_of([]) == ()


STEPS = st.sampled_from(["a", "b", "0", "1", "10"])
NAMES = st.lists(STEPS, min_size=1, max_size=6).map(".".join)


@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=2), st.integers(0, 99)), max_size=12))
def test_no_tensor_is_in_two_blocks_and_each_is_below_its_own(drawn: list[tuple[list[str], int]]) -> None:
    given_tensors = [NamedBytes(tuple(names), nbytes) for names, nbytes in drawn]
    found = blocks_of(given_tensors)
    members = [i for block in found for i in block.members]
    assert len(members) == len(set(members))
    for block in found:
        assert block.nbytes == sum(given_tensors[i].nbytes for i in block.members)
        assert all(n.startswith(f"{block.path}.") for i in block.members for n in given_tensors[i].names)
