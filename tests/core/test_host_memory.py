"""One copy of a component's bytes for all runners of a host, under a budget that is never exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from falctl.core.host_memory import (
    BLOCKS_MAX,
    PAGE_BYTES,
    Abandoned,
    Action,
    Asked,
    Died,
    Drop,
    Event,
    Fill,
    Give,
    Holder,
    Ledger,
    LetGo,
    Protect,
    Refuse,
    Sealed,
    Squeezed,
    Ticked,
    Withdrawn,
)
from falctl.core.types import Epoch, RunnerId

P = PAGE_BYTES


def holder(runner: int, epoch: int = 1) -> Holder:
    return Holder(RunnerId(runner), Epoch(epoch))


A, B, C = holder(0), holder(1), holder(2)


class Told:
    """A ledger, told its events one second after another; the first question of each is number 1."""

    def __init__(self, pages: int, *, keep_alive_s: float | None = None) -> None:
        self.ledger = Ledger(pages * P, keep_alive_s=keep_alive_s)
        self.now = 0.0
        self.asked = 0

    def __call__(self, event: Event) -> list[Action]:
        self.now += 1.0
        return self.ledger.handle(event, now=self.now)

    def ask(self, who: Holder, key: str, *, pages: int = 1) -> list[Action]:
        self.asked += 1
        return self(Asked(who, self.asked, key, pages * P))

    def sealed(self, who: Holder, key: str, *, pages: int = 1) -> int:
        """Let *who* fill *key*; return the block."""
        *_, fill = self.ask(who, key, pages=pages)
        assert isinstance(fill, Fill)
        assert self(Sealed(who, fill.block)) == [Protect(fill.block)]
        return fill.block

    def unused(self, key: str, *, pages: int = 1) -> int:
        """Let somebody fill *key* and let go of it; return the block."""
        block = self.sealed(A, key, pages=pages)
        assert self(LetGo(A, block)) == []
        return block


def test_the_first_who_asks_fills_and_later_ones_get_it_filled() -> None:
    told = Told(pages=10)
    assert told.ask(A, "unet", pages=3) == [Fill(A, 1, 1, 3 * P)]
    assert told(Sealed(A, 1)) == [Protect(1)]
    assert told.ask(B, "unet", pages=3) == [Give(B, 2, 1, 3 * P)]
    assert (told.ledger.held_bytes, told.ledger.blocks) == (3 * P, 1)


def test_who_asks_while_it_is_filled_gets_it_when_it_is_sealed() -> None:
    told = Told(pages=10)
    told.ask(A, "unet")
    assert told.ask(B, "unet") == []
    assert told.ask(C, "unet") == []
    assert told.ledger.waiting == 2
    assert told(Sealed(A, 1)) == [Protect(1), Give(B, 2, 1, P), Give(C, 3, 1, P)]
    assert told.ledger.waiting == 0


def test_equal_names_of_other_sizes_are_other_contents() -> None:
    told = Told(pages=10)
    told.sealed(A, "unet", pages=1)
    assert told.ask(B, "unet", pages=2) == [Fill(B, 2, 2, 2 * P)]


def test_a_part_of_a_page_counts_as_a_page() -> None:
    told = Told(pages=1)
    assert told(Asked(A, 1, "scale", 1)) == [Fill(A, 1, 1, 1)]
    assert told.ledger.held_bytes == P
    assert told(Asked(A, 2, "shift", 1)) == [Refuse(A, 2, 1, P, P, (RunnerId(0),))]


def test_what_nobody_refers_to_stays_and_is_found_again() -> None:
    told = Told(pages=10)
    block = told.unused("unet")
    assert (told.ledger.held_bytes, told.ledger.used_bytes) == (P, 0)
    assert told.ask(B, "unet") == [Give(B, 2, block, P)]
    assert told.ledger.used_bytes == P


def test_room_is_made_by_the_least_recently_used_first() -> None:
    told = Told(pages=3)
    first, second, third = told.unused("a"), told.unused("b"), told.unused("c")
    told.ask(B, "a")  # used again: now b is the oldest
    told(LetGo(B, first))
    assert told.ask(C, "d", pages=2) == [Drop(second), Drop(third), Fill(C, 5, 4, 2 * P)]


def test_a_block_whose_room_is_not_needed_after_all_stays() -> None:
    told = Told(pages=5)
    told.unused("small", pages=1)
    large = told.unused("large", pages=4)
    assert told.ask(B, "new", pages=4) == [Drop(large), Fill(B, 3, 3, 4 * P)]


def test_what_somebody_refers_to_never_leaves() -> None:
    told = Told(pages=3)
    told.sealed(A, "a", pages=2)
    unused = told.unused("b")
    refused = Refuse(B, 3, 2 * P, 2 * P, 3 * P, (RunnerId(0),))
    assert told.ask(B, "c", pages=2) == [refused]
    assert told.ask(B, "b") == [Give(B, 4, unused, P)], "nothing is dropped for who is refused all the same"


def test_who_is_refused_is_told_how_much_would_have_to_go() -> None:
    told = Told(pages=5)
    told.sealed(A, "a", pages=4)
    (refused,) = told(Asked(A, 2, "b", 2 * P + 1))
    assert isinstance(refused, Refuse)
    assert refused.lacking_bytes == 2 * P
    told(LetGo(A, 1))
    assert told(Asked(A, 3, "b", 2 * P + 1))[-1] == Fill(A, 3, 2, 2 * P + 1)


def test_more_than_the_budget_is_refused() -> None:
    told = Told(pages=3)
    refused = told.ask(A, "a", pages=4)
    assert refused == [Refuse(A, 1, 4 * P, 0, 3 * P, ())]
    assert isinstance(refused[0], Refuse)
    assert refused[0].lacking_bytes == 0, "to let go of others would not help"


def test_there_are_only_so_many_blocks() -> None:
    told = Told(pages=BLOCKS_MAX * 2)
    oldest = told.unused("0")
    for number in range(1, BLOCKS_MAX):
        told.sealed(A, str(number))
    assert told.ask(B, "more") == [Drop(oldest), Fill(B, BLOCKS_MAX + 1, BLOCKS_MAX + 1, P)]
    (refused,) = told.ask(B, "still more")
    assert isinstance(refused, Refuse)
    assert refused.lacking_bytes > 0


def test_a_runner_may_have_a_block_twice() -> None:
    told = Told(pages=1)
    block = told.sealed(A, "a")
    told.ask(A, "a")
    told(LetGo(A, block))
    assert told.ledger.used_bytes == P
    told(LetGo(A, block))
    assert told.ledger.used_bytes == 0


def test_an_abandoned_block_is_filled_by_the_first_who_waits() -> None:
    told = Told(pages=4)
    told.ask(A, "a")
    told.ask(B, "a")
    told.ask(C, "a")
    assert told(Abandoned(A, 1)) == [Fill(B, 2, 2, P)]
    assert told.ledger.held_bytes == 2 * P, "its filler has it mapped still"
    assert told(LetGo(A, 1)) == [Drop(1)]
    assert told(Sealed(B, 2)) == [Protect(2), Give(C, 3, 2, P)]


def test_who_waits_for_an_abandoned_block_is_refused_where_its_bytes_are_in_the_way() -> None:
    told = Told(pages=3)
    told.ask(A, "a", pages=2)
    told.ask(B, "a", pages=2)
    assert told(Abandoned(A, 1)) == [Refuse(B, 2, 2 * P, 2 * P, 3 * P, (RunnerId(0),))]


def test_a_block_that_is_let_go_unsealed_is_forgotten() -> None:
    told = Told(pages=1)
    told.ask(A, "a")
    told.ask(B, "a")
    assert told(LetGo(A, 1)) == [Drop(1), Fill(B, 2, 2, P)]


def test_who_waits_no_more_gets_nothing_and_the_others_go_on_waiting() -> None:
    told = Told(pages=2)
    told.ask(A, "a")
    told.ask(B, "a")
    told.ask(C, "a")
    told.ask(C, "a")
    assert told(Withdrawn(C, 3)) == []
    assert told.ledger.waiting == 2
    assert told(Abandoned(A, 1)) == [Fill(B, 2, 2, P)]
    assert told(Sealed(B, 2)) == [Protect(2), Give(C, 4, 2, P)]


def test_a_question_that_was_answered_or_is_anothers_cannot_be_withdrawn() -> None:
    told = Told(pages=2)
    told.ask(A, "a")
    told.ask(B, "a")
    assert told(Withdrawn(A, 1)) == told(Withdrawn(A, 2)) == []
    assert (told.ledger.used_bytes, told.ledger.waiting) == (P, 1)
    assert told(LetGo(A, 1)) == [Drop(1), Fill(B, 2, 2, P)], "as who gets a late answer does"


def test_when_its_filler_dies_the_first_who_waits_fills() -> None:
    told = Told(pages=1)
    told.ask(A, "a")
    told.ask(B, "a")
    told.ask(C, "a")
    assert told(Died(A)) == [Drop(1), Fill(B, 2, 2, P)]
    assert told(Sealed(B, 2)) == [Protect(2), Give(C, 3, 2, P)]


def test_who_waits_for_what_the_dead_filled_gets_its_room() -> None:
    told = Told(pages=3)
    told.ask(A, "a", pages=2)
    held = told.sealed(A, "b", pages=1)
    told.ask(B, "a", pages=2)
    assert told(Died(A)) == [Drop(1), Fill(B, 3, 3, 2 * P)]
    assert told.ask(C, "b") == [Give(C, 4, held, P)]


def test_references_of_the_dead_vanish_and_their_questions_with_them() -> None:
    told = Told(pages=2)
    block = told.sealed(A, "a")
    told.ask(A, "a")
    told.ask(B, "b")
    told.ask(A, "b")
    assert told(Died(A)) == []
    assert (told.ledger.used_bytes, told.ledger.waiting) == (P, 0)
    assert told(Sealed(B, 2)) == [Protect(2)], "nobody waits any more"
    assert told.ask(B, "a") == [Give(B, 5, block, P)]


def test_of_the_dead_nothing_is_heard() -> None:
    told = Told(pages=2)
    told.ask(A, "a")
    told(Died(A))
    assert told.ask(A, "a") == []
    assert told(Died(A)) == []
    assert told.ledger.blocks == 0


def test_a_later_incarnation_ends_the_former() -> None:
    told = Told(pages=2)
    told.ask(A, "a")
    told.ask(B, "a")
    successor = holder(0, epoch=2)
    assert told.ask(successor, "b") == [Drop(1), Fill(B, 2, 2, P), Fill(successor, 3, 3, P)]
    assert told(Sealed(A, 3)) == []
    assert told(Died(A)) == []
    assert told(Sealed(successor, 3)) == [Protect(3)]
    assert told.ledger.used_bytes == 2 * P


@pytest.mark.parametrize("event", [Sealed, Abandoned, LetGo])
def test_a_block_is_sealed_abandoned_and_let_go_by_who_has_it_alone(
    event: type[Sealed] | type[Abandoned] | type[LetGo],
) -> None:
    told = Told(pages=2)
    told.ask(A, "a")
    told.ask(B, "a")
    assert told(event(B, 1)) == []
    assert told(event(A, 7)) == []
    assert (told.ledger.used_bytes, told.ledger.waiting) == (P, 1)


def test_what_is_sealed_stays_so() -> None:
    told = Told(pages=2)
    block = told.sealed(A, "a")
    assert told(Abandoned(A, block)) == []
    assert told(Sealed(A, block)) == []
    assert told.ask(B, "a") == [Give(B, 2, block, P)]


def test_what_is_unused_for_too_long_leaves() -> None:
    told = Told(pages=4, keep_alive_s=10.0)
    block = told.unused("a")
    used = told.sealed(B, "b")
    told.now += 6.0
    assert told(Ticked()) == []
    told.now += 1.0
    assert told(Ticked()) == [Drop(block)]
    told.now += 100.0
    assert told(Ticked()) == []
    assert told.ask(A, "b") == [Give(A, 3, used, P)]


def test_what_is_unused_stays_for_ever_where_no_time_is_set() -> None:
    told = Told(pages=4)
    told.unused("a")
    told.now += 1e9
    assert told(Ticked()) == []


def test_when_others_need_memory_the_unused_gives_way() -> None:
    told = Told(pages=4)
    oldest = told.unused("a")
    newest = told.unused("b")
    used = told.sealed(B, "c")
    assert told(Squeezed(1)) == [Drop(oldest)]
    assert told(Squeezed(9 * P)) == [Drop(newest)]
    assert told(Squeezed(9 * P)) == []
    assert told.ask(A, "c") == [Give(A, 4, used, P)]


class Machine(RuleBasedStateMachine):
    """Three runners that ask, fill, let go and die as they like; the memory as the kernel would count it."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(8 * P, keep_alive_s=5.0)
        self.now = 0.0
        self.epochs = [1, 1, 1]
        self.memory: dict[int, int] = {}
        """Pages of each block that is not dropped."""
        self.mapped: list[tuple[Holder, int]] = []
        self.filling: dict[int, tuple[Holder, str]] = {}
        self.questions: dict[int, tuple[Holder, str, int]] = {}
        self.numbers = 0
        self.content: dict[int, str] = {}
        self.protected: set[int] = set()

    def tell(self, event: Event) -> None:
        self.now += 1.0
        for action in self.ledger.handle(event, now=self.now):
            self.perform(action)
            assert sum(self.memory.values()) <= 8, "a budget exceeded between two actions"

    def perform(self, action: Action) -> None:
        match action:
            case Drop(block):
                assert block not in {number for _, number in self.mapped}, "dropped under a mapping"
                del self.memory[block]
            case Fill(who, number, block, nbytes):
                asked = self.questions.pop(number)
                assert (who, nbytes) == (asked[0], asked[2] * P)
                assert asked[1] not in {key for _, key in self.filling.values()}, "two fill the same"
                self.memory[block] = asked[2]
                self.mapped.append((who, block))
                self.filling[block] = (who, asked[1])
                self.content[block] = asked[1]
            case Give(who, number, block, _):
                assert self.questions.pop(number)[:2] == (who, self.content[block])
                assert block in self.protected, "given before it was sealed"
                self.mapped.append((who, block))
            case Protect(block):
                self.protected.add(block)
            case Refuse(_, number, nbytes, used, budget, _):
                del self.questions[number]
                assert nbytes > budget - used

    @rule(runner=st.integers(0, 2), key=st.integers(0, 4))
    def ask(self, runner: int, key: int) -> None:
        self.numbers += 1
        who, pages = holder(runner, self.epochs[runner]), key % 3 + 1
        self.questions[self.numbers] = (who, str(key), pages)
        self.tell(Asked(who, self.numbers, str(key), pages * P))

    @precondition(lambda self: self.filling)
    @rule(data=st.data(), how=st.sampled_from((Sealed, Abandoned)))
    def end_filling(self, data: st.DataObject, how: type[Sealed] | type[Abandoned]) -> None:
        block = data.draw(st.sampled_from(sorted(self.filling)))
        who, _ = self.filling.pop(block)
        self.tell(how(who, block))

    @precondition(lambda self: self.mapped)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.mapped) - 1))
        who, block = self.mapped.pop(at)
        self.filling.pop(block, None)
        self.tell(LetGo(who, block))

    @precondition(lambda self: self.questions)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.questions)))
        who, *_ = self.questions.pop(number)
        self.tell(Withdrawn(who, number))

    @rule(runner=st.integers(0, 2))
    def kill(self, runner: int) -> None:
        dead = holder(runner, self.epochs[runner])
        self.mapped = [(who, block) for who, block in self.mapped if who != dead]
        self.filling = {block: (who, key) for block, (who, key) in self.filling.items() if who != dead}
        self.questions = {n: asked for n, asked in self.questions.items() if asked[0] != dead}
        self.epochs[runner] += 1
        self.tell(Died(dead))

    @rule()
    def tick(self) -> None:
        self.tell(Ticked())

    @rule(pages=st.integers(1, 3))
    def squeeze(self, pages: int) -> None:
        self.tell(Squeezed(pages * P))

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.ledger.held_bytes == sum(self.memory.values()) * P
        assert self.ledger.used_bytes == sum(self.memory[block] for block in {b for _, b in self.mapped}) * P
        assert self.ledger.waiting == len(self.questions)

    @invariant()
    def who_waits_waits_for_somebody(self) -> None:
        waited_for = {key for _, key, _ in self.questions.values()}
        assert waited_for <= {key for _, key in self.filling.values()}


TestMachine = Machine.TestCase


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 8))
def test_no_more_leaves_than_must(sizes: list[int], incoming: int) -> None:
    told = Told(pages=max(sum(sizes), incoming))
    for number, pages in enumerate(sizes):
        told.unused(str(number), pages=pages)
    drops = [action.block for action in told.ask(B, "new", pages=incoming) if isinstance(action, Drop)]
    free = told.ledger.budget_bytes - told.ledger.held_bytes
    assert all(sizes[block - 1] * P > free for block in drops), "one of them could have stayed"
