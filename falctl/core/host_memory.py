"""
Who holds which bytes of host memory: one block per component, shared by the runners of a host, under one budget.

    block      event                          next       action
    (none)     Asked, there is room           filling    Fill (Drop first what nobody refers to, if room is short)
    (none)     Asked, there is none           (none)     Refuse
    filling    Asked                          filling    (waits)
    filling    Withdrawn, by who waits        filling    (waits no more)
    filling    Sealed, by who fills it        sealed     Protect, then Give to all who wait
    filling    Abandoned, or its filler died  abandoned  Fill of a new block, or Refuse, to the first who waits
    sealed     Asked                          sealed     Give
    any        LetGo, Died                    any        Drop, if it is not sealed and nobody refers to it
    sealed     Ticked, unused for keep_alive  (none)     Drop

A sealed block that nobody refers to stays: it is what a killed runner, or a second one, finds instead of the disk. It
leaves when its room is needed, the least recently used first (to read a byte again costs the same whichever block it
is of), or when it has not been used for ``keep_alive_s``. An abandoned block cannot be found any more, but its bytes
count until its filler has unmapped them, so that the budget is one of memory, not of names.

Who asks is an incarnation of a runner: of one that has died, or has been succeeded, nothing is heard any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, assert_never

from falctl.core.types import Epoch, RunnerId

PAGE_BYTES: Final = 4096
"""What the kernel gives memory in."""

BLOCKS_MAX: Final = 256
"""Each is a descriptor of the supervisor's, which has 1,024 on most machines."""

Key: TypeAlias = tuple[str, int]
"""The name of some content, and how many bytes it has."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One incarnation of a runner."""

    runner: RunnerId
    epoch: Epoch


# --- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """It wants the block of ``key``; ``number`` is its own name for the question."""

    holder: Holder
    number: int
    key: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """It waits for no answer to its question ``number`` any more; one that is on its way it lets go of by itself."""

    holder: Holder
    number: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """It has filled the block that was its to fill, and nobody writes to it any more."""

    holder: Holder
    block: int


@dataclass(frozen=True, slots=True)
class Abandoned:
    """It will not fill the block that was its to fill; it refers to it still."""

    holder: Holder
    block: int


@dataclass(frozen=True, slots=True)
class LetGo:
    """It has unmapped the block once: each time that it was given one is a reference of its own."""

    holder: Holder
    block: int


@dataclass(frozen=True, slots=True)
class Died:
    """The kernel has taken back all that it had mapped."""

    holder: Holder


@dataclass(frozen=True, slots=True)
class Squeezed:
    """The machine is short of ``nbytes`` for others: what nobody refers to should give way."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event: TypeAlias = Asked | Withdrawn | Sealed | Abandoned | LetGo | Died | Squeezed | Ticked


# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fill:
    """Make the memory of a new ``block`` and give it to ``holder``, which fills it."""

    holder: Holder
    number: int
    block: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Protect:
    """Let nobody who is given ``block`` from now on write to it."""

    block: int


@dataclass(frozen=True, slots=True)
class Give:
    """Give ``holder`` the block, which is filled."""

    holder: Holder
    number: int
    block: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell ``holder`` that there is no room, in bytes: ``used`` of ``budget`` by what somebody refers to."""

    holder: Holder
    number: int
    nbytes: int
    used_bytes: int
    budget_bytes: int
    runners: tuple[RunnerId, ...]
    """Who refers to what is used."""

    @property
    def lacking_bytes(self) -> int:
        """Return how many bytes more would have to be unused for it to fit; 0: it never does."""
        size = whole_pages(self.nbytes)
        return 0 if size > self.budget_bytes else max(1, size + self.used_bytes - self.budget_bytes)


@dataclass(frozen=True, slots=True)
class Drop:
    """Give the memory of ``block`` back to the kernel."""

    block: int


Action: TypeAlias = Fill | Protect | Give | Refuse | Drop


def whole_pages(nbytes: int) -> int:
    """Return what *nbytes* take."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(slots=True, eq=False)
class _Block:
    number: int
    key: Key
    size_bytes: int
    state: Literal["filling", "sealed", "abandoned"]
    used_at: float
    """When it was last let go of; what somebody refers to never leaves."""
    refs: dict[Holder, int]
    waiting: list[Asked] = field(default_factory=list)


class Ledger:
    """
    The blocks of one host, and who refers to them. Its owner performs the actions of each event before the next one.

    ``keep_alive_s`` None: what nobody refers to stays until its room is needed.
    """

    def __init__(self, budget_bytes: int, *, keep_alive_s: float | None = None) -> None:
        self.budget_bytes = budget_bytes
        self.keep_alive_s = keep_alive_s
        self._blocks: dict[int, _Block] = {}
        self._by_key: dict[Key, _Block] = {}
        self._epochs: dict[RunnerId, Epoch] = {}
        """Of each runner the oldest incarnation that is still heard."""
        self._last = 0

    @property
    def held_bytes(self) -> int:
        """Return what all blocks take."""
        return sum(block.size_bytes for block in self._blocks.values())

    @property
    def used_bytes(self) -> int:
        """Return what the blocks take that somebody refers to."""
        return sum(block.size_bytes for block in self._blocks.values() if block.refs)

    @property
    def blocks(self) -> int:
        """Return how many blocks there are."""
        return len(self._blocks)

    @property
    def waiting(self) -> int:
        """Return how many questions wait for another runner to fill a block."""
        return sum(len(block.waiting) for block in self._blocks.values())

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Return what to do about *event*, in that order: room is made before it is used."""
        match event:
            case Asked() | Withdrawn() | Sealed() | Abandoned() | LetGo():
                return self._hear(event, now)
            case Died(holder):
                return self._end(holder.runner, Epoch(holder.epoch + 1), now)
            case Squeezed(nbytes):
                return self._drop(self._cheapest(nbytes))
            case Ticked():
                return self._drop(self._expired(now))
            case _:
                assert_never(event)

    def _hear(self, event: Asked | Withdrawn | Sealed | Abandoned | LetGo, now: float) -> list[Action]:
        holder = event.holder
        if holder.epoch < self._epochs.get(holder.runner, holder.epoch):
            return []
        done = self._end(holder.runner, holder.epoch, now)
        if isinstance(event, Asked | Withdrawn):
            return done + self._question(event, now)
        block = self._blocks.get(event.block)
        if block is None or holder not in block.refs:
            return done
        match event:
            case Sealed():
                return done + self._seal(block)
            case Abandoned():
                return done + self._abandon(block, now)
            case LetGo():
                return done + self._let_go(block, holder, now)
            case _:
                assert_never(event)

    def _question(self, event: Asked | Withdrawn, now: float) -> list[Action]:
        if isinstance(event, Asked):
            return self._ask(event, now)
        self._forget_questions(lambda asked: (asked.holder, asked.number) == (event.holder, event.number))
        return []

    def _ask(self, asked: Asked, now: float) -> list[Action]:
        key = (asked.key, asked.nbytes)
        block = self._by_key.get(key)
        if block is None:
            return self._begin(asked, now)
        if block.state == "filling":
            block.waiting.append(asked)
            return []
        return [self._give(block, asked)]

    def _begin(self, asked: Asked, now: float) -> list[Action]:
        size = whole_pages(asked.nbytes)
        crowded = self.blocks >= BLOCKS_MAX
        if size > self.budget_bytes - self.used_bytes or (crowded and not self._unused()):
            return [self._refusal(asked)]
        short = size - (self.budget_bytes - self.held_bytes)
        dropped = self._drop(self._cheapest(max(short, 1) if crowded else short))
        self._last += 1
        block = _Block(self._last, (asked.key, asked.nbytes), size, "filling", now, {asked.holder: 1})
        self._blocks[block.number] = self._by_key[block.key] = block
        return [*dropped, Fill(asked.holder, asked.number, block.number, asked.nbytes)]

    def _refusal(self, asked: Asked) -> Refuse:
        runners = sorted({holder.runner for block in self._blocks.values() for holder in block.refs})
        return Refuse(
            asked.holder, asked.number, asked.nbytes, self.used_bytes, self.budget_bytes, tuple(runners)
        )

    def _give(self, block: _Block, asked: Asked) -> Give:
        block.refs[asked.holder] = block.refs.get(asked.holder, 0) + 1
        return Give(asked.holder, asked.number, block.number, asked.nbytes)

    def _seal(self, block: _Block) -> list[Action]:
        if block.state != "filling":
            return []
        block.state = "sealed"
        waiting, block.waiting = block.waiting, []
        return [Protect(block.number), *(self._give(block, asked) for asked in waiting)]

    def _abandon(self, block: _Block, now: float) -> list[Action]:
        """Let *block*, if it is being filled, be found no more; who waited for it is answered as if it asked now."""
        if block.state != "filling":
            return []
        block.state = "abandoned"
        del self._by_key[block.key]
        waiting, block.waiting = block.waiting, []
        return [action for asked in waiting for action in self._ask(asked, now)]

    def _let_go(self, block: _Block, holder: Holder, now: float) -> list[Action]:
        block.refs[holder] -= 1
        return [] if block.refs[holder] else self._unref(block, holder, now)

    def _unref(self, block: _Block, holder: Holder, now: float) -> list[Action]:
        """Take every reference of *holder* away; what is not sealed leaves, before who waits for it gets its room."""
        del block.refs[holder]
        block.used_at = now
        if block.state == "sealed":
            return []
        del self._blocks[block.number]  # only its filler ever refers to what is not sealed
        return [Drop(block.number), *self._abandon(block, now)]

    def _end(self, runner: RunnerId, epoch: Epoch, now: float) -> list[Action]:
        """Forget every incarnation of *runner* before *epoch*, and never hear one again."""
        if epoch <= self._epochs.get(runner, epoch - 1):
            return []
        self._epochs[runner] = epoch
        self._forget_questions(lambda asked: asked.holder.runner == runner)
        held = [(block, who) for block in self._blocks.values() for who in block.refs if who.runner == runner]
        return [action for block, who in held for action in self._unref(block, who, now)]

    def _forget_questions(self, whose: Callable[[Asked], bool]) -> None:
        for block in self._blocks.values():
            block.waiting = [asked for asked in block.waiting if not whose(asked)]

    def _cheapest(self, nbytes: int) -> list[_Block]:
        """Return blocks of at least *nbytes* that nobody refers to, all of them if that is less."""
        chosen: list[_Block] = []
        for block in sorted(self._unused(), key=lambda block: block.used_at):
            if nbytes <= 0:
                break
            chosen.append(block)
            nbytes -= block.size_bytes
        for block in reversed(chosen):  # a large one may have made smaller ones before it superfluous
            if block.size_bytes <= -nbytes:
                chosen.remove(block)
                nbytes += block.size_bytes
        return chosen

    def _expired(self, now: float) -> list[_Block]:
        if (keep_s := self.keep_alive_s) is None:
            return []
        return [block for block in self._unused() if now - block.used_at >= keep_s]

    def _unused(self) -> list[_Block]:
        return [block for block in self._blocks.values() if not block.refs]

    def _drop(self, blocks: Iterable[_Block]) -> list[Action]:
        actions: list[Action] = []
        for block in blocks:
            del self._blocks[block.number], self._by_key[block.key]
            actions.append(Drop(block.number))
        return actions
