"""
Leases that wait until the device has room for them, and for those that must not draw beside them.

`falctl.core.turns` decides; here it is asked again whenever a lease has ended, and every `LOOK_S` seconds, since other
programs let go of memory without a word. Who waits holds no model for it and no lock, and leaves when its request is
cancelled.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, Literal, TypeVar

from falctl.core.activations import LEAST, Drawing
from falctl.core.residency import Room
from falctl.core.turns import Use, Verdict, room_alone, room_at_last, verdict
from falctl.errors import ModelTooLargeError
from falctl.toolkit.cache_entry import Claim
from falctl.toolkit.cache_hooks import WHOLE, Admitted, CacheHooks, CachePolicy
from falctl.toolkit.cancel import LOOK_S, RequestCancelled
from falctl.toolkit.holdings import Holdings
from falctl.toolkit.model_store import ModelStore
from falctl.toolkit.moving import is_moving

M = TypeVar("M")


class RoomTakenError(Exception):
    """Others draw where a load was granted room; it is to wait for them, with *alone* for all of them."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__("others draw where it was to be placed")
        self.alone = alone


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants of a model."""

    name: str
    holder: Hashable
    """For whom; see `CacheHooks.holder`."""
    to: Literal["vram", "ram"] = "vram"
    drawing: Drawing | None = None
    first: Collection[str] = ()
    """Models that are to leave before others."""
    alone: bool = False
    """Nobody is to draw beside it."""


class Turns(Generic[M]):
    """Grants leases of *holdings*. Thread-safe."""

    def __init__(
        self, store: ModelStore[M], holdings: Holdings[M], policy: CachePolicy, hooks: CacheHooks
    ) -> None:
        self._store = store
        self._holdings = holdings
        self._policy = policy
        self._hooks = hooks
        self._line: dict[object, Use] = {}
        """Who waits, the first who asked first; guarded by the lock of the holdings."""

    def take(self, asked: Asked) -> Claim:
        """
        Return what was *asked* for, leased; blocks until there is room for it.

        Raises:
            ModelTooLargeError: there can be none, or not before those end who wait for this one's holder.
            RequestCancelled: the request that asks was cancelled while it waited.

        """
        if asked.to == "ram" or self._store.free_bytes is None:
            use = self._use(asked, WHOLE)
            with self._holdings.lock:
                return self._holdings.claim(use, asked.to)
        cancelled, place = self._hooks.cancelled(), object()
        try:
            while (claim := self._look(asked, place)) is None:
                if cancelled.is_set():
                    raise RequestCancelled
        finally:
            with self._holdings.lock:
                if self._line.pop(place, None) is not None:
                    self._holdings.changed.notify_all()
        return claim

    def admit_anew(self, claim: Claim, asked: Asked) -> Admitted:
        """
        Return how *claim*'s model is to run, by what is known of it now, and give it that room.

        Raises as `take`, and RoomTakenError: it needs more than was known when it was granted.
        """
        with self._holdings.lock:
            uses = self._holdings.uses(but=claim.use)
            best = room_at_last(claim.use, (), uses, self._holdings.supply())
        admitted = self.admit(asked, best)
        use = self._use(asked, admitted)
        with self._holdings.lock:
            uses = self._holdings.uses(but=claim.use)
            found = verdict(use, (), uses, self._holdings.supply())
            if found == "now":
                self._holdings.exchange(claim, use)
                claim.admitted = admitted
        if found != "now":
            raise RoomTakenError(alone=asked.alone)
        return admitted

    def is_alone(self, claim: Claim) -> bool:
        """Return whether nobody who could be waited for holds a model beside *claim*."""
        with self._holdings.lock:
            uses = self._holdings.uses(but=claim.use)
        return all(use.lasting or use.holder == claim.use.holder for use in uses)

    def admit(self, asked: Asked, room: Room) -> Admitted:
        """Return how a model is to run in *room*. Raises ModelTooLargeError."""
        if self._policy.admit is not None:
            return self._policy.admit(asked.name, asked.drawing, room)
        need_bytes = self._need(asked)
        if need_bytes > room.most_bytes:
            raise self.too_large(asked, room)
        return Admitted("whole", need_bytes)

    def too_large(self, asked: Asked, room: Room | None, why: str = "") -> ModelTooLargeError:
        """Return the error that says, with numbers, that a model has no *room* for a drawing."""
        told = why if room is None else f"{room.told(self._need(asked))}{why and '; '}{why}"
        least_bytes = None if room is None or why == IN_VAIN else self._need(replace(asked, drawing=LEAST))
        fits = least_bytes is None or room is None or (not why and least_bytes <= room.most_bytes)
        return ModelTooLargeError(
            f"Model {asked.name!r} has no room: {told}",
            model=asked.name,
            least_bytes=None if fits else least_bytes,
        )

    def _look(self, asked: Asked, place: object) -> Claim | None:
        """Return the lease if it is granted; None: not yet. Waits for something to change then."""
        bare = self._use(asked, WHOLE)
        with self._holdings.lock:
            uses, supply = self._holdings.uses(), self._holdings.supply()
            best = room_at_last(bare, self._before(place), uses, supply)
            alone = room_alone(bare, uses, supply)
        try:
            admitted = self.admit(asked, best)
        except ModelTooLargeError:
            self.admit(asked, alone)  # if it is not too large, but others do not end before this one does
            raise self.too_large(asked, best, IN_VAIN) from None
        use = self._use(asked, admitted)
        with self._holdings.lock:
            found, room = self._judged(use, place)
            if found == "now":
                claim = self._holdings.claim(use, asked.to)
                claim.admitted = admitted
                return claim
            if found == "wait":
                self._line[place] = use
                self._holdings.changed.wait(LOOK_S)
                return None
        if room.most_bytes < use.need_bytes <= best.most_bytes:
            return None  # others have taken memory since it was admitted: it may still run in another way
        raise self.too_large(asked, room, IN_VAIN)

    def _judged(self, use: Use, place: object) -> tuple[Verdict, Room]:
        before, uses, supply = self._before(place), self._holdings.uses(), self._holdings.supply()
        found = verdict(use, before, uses, supply)
        if found == "wait" and is_moving():
            found = "never"  # those who have the room may wait for the lock that this thread holds
        return found, room_at_last(use, before, uses, supply)

    def _before(self, place: object) -> Sequence[Use]:
        before: list[Use] = []
        for other, use in self._line.items():
            if other is place:
                break
            before.append(use)
        return before

    def _use(self, asked: Asked, admitted: Admitted) -> Use:
        lasting = asked.holder is None
        use = Use(asked.name, object() if lasting else asked.holder, lasting=lasting)
        if admitted is WHOLE:
            return use
        return replace(
            use,
            need_bytes=admitted.need_bytes,
            parts=self._store.needs(asked.name),
            way=(admitted.how, admitted.detail),
            moves=admitted.how != "whole",
            alone=asked.alone,
        )

    def _need(self, asked: Asked) -> int:
        weights = sum(p.nbytes for p in self._store.needs(asked.name))
        return weights + self._store.peak_bytes(asked.name, asked.drawing)


IN_VAIN: Final = "and others have it who wait for what this request has, or do not end"
