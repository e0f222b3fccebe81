"""
Bring a model to where it is wanted: one load however many ask.

A lease waits for its turn (`turns.py`), then for the load of its model if one is under way, or performs it
(`load_steps.py`) with `LOADING` held, but for one that only reads bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, TypeVar

from falctl.core.residency import Verdict
from falctl.core.turns import Use
from falctl.errors import ModelTooLargeError
from falctl.toolkit.cache_entry import Claim, Load
from falctl.toolkit.cache_hooks import WHOLE, CacheHooks, CachePolicy
from falctl.toolkit.cancel import LOOK_S, RequestCancelled
from falctl.toolkit.holdings import Holdings
from falctl.toolkit.leaving import Leaving
from falctl.toolkit.load_steps import LoadSteps
from falctl.toolkit.model_store import ModelStore
from falctl.toolkit.moving import is_moving, moving
from falctl.toolkit.turns import Asked, RoomTakenError, Turns

M = TypeVar("M")


class ModelLoader(Generic[M]):
    """Loads what is asked for of *holdings*. Thread-safe; blocks."""

    def __init__(
        self,
        store: ModelStore[M],
        holdings: Holdings[M],
        leaving: Leaving[M],
        *,
        policy: CachePolicy,
        hooks: CacheHooks,
    ) -> None:
        self._store = store
        self._holdings = holdings
        self._leaving = leaving
        self._hooks = hooks
        self._turns = Turns(store, holdings, policy, hooks)
        self._steps = LoadSteps(
            store, holdings, leaving=leaving, turns=self._turns, policy=policy, hooks=hooks
        )

    def get(self, asked: Asked) -> tuple[Claim, Verdict]:
        """Return the model *asked* for, leased, loaded, with room for its drawing; raises what the load raised."""
        while True:
            claim = self._turns.take(asked)
            try:
                if (verdict := self._brought(claim, asked)) is not None:
                    return claim, verdict
            except RoomTakenError as error:
                asked = replace(asked, alone=asked.alone or error.alone)
            except RequestCancelled:
                if claim.mine or self._hooks.cancelled().is_set():
                    self._holdings.release(claim)
                    raise
                # The request that was loading it was cancelled; ours was not.
            except BaseException:
                self._holdings.release(claim)
                raise
            self._holdings.release(claim)  # or it was being loaded, but not to where we want it

    def adopt(self, asked: Asked, model: M, put: Callable[[str, M], None]) -> Claim:
        """Take *model*, which the app has loaded, for the name *asked*, and *put* it into the store; return it leased."""
        with moving():
            claim = self._turns.take(asked)
            try:
                if claim.load is not None:
                    self._leaving.trim(incoming=1)
                put(asked.name, model)
                self._holdings.made(claim.entry, self._store.needs(asked.name))
                self._holdings.place(claim.entry, WHOLE, model)
            except BaseException:
                self._holdings.release(claim)  # the app's `unload` of another model may raise
                raise
            finally:
                if claim.load is not None:
                    self._holdings.over(claim.entry, claim.load)
        self._hooks.changed()
        return claim

    def too_large(self, asked: Asked, why: str) -> ModelTooLargeError:
        """Return the error that says, with numbers, that a model has no room for a drawing."""
        return self._turns.too_large(asked, self._holdings.room(Use(asked.name, asked.holder)), why)

    def _brought(self, claim: Claim, asked: Asked) -> Verdict | None:
        """Bring it to where it is wanted; return from where, None: it went elsewhere."""
        if claim.load is None and not self._store.is_constructed(asked.name):
            self._holdings.outdated(claim, asked.to)  # its files have been replaced
        load = claim.load
        if load is not None:
            self._fulfil(claim, load, asked)
        if asked.to == "vram" and claim.entry.placed is None:
            return None
        if asked.to == "vram" and not claim.mine and not self._steps.fits(claim, asked):
            with moving(self._hooks.cancelled()):
                # Whoever else uses it wants it to stay as it is.
                if (again := self._holdings.again(claim.entry)) is not None:
                    self._perform(claim, again, lambda: self._steps.load(claim, again, asked))
                    return "ram"
                self._steps.make_room(claim, asked)
        return "hit" if load is None else load.verdict if claim.mine else "join"

    def _fulfil(self, claim: Claim, load: Load, asked: Asked) -> None:
        try:
            self._act(claim, load, asked)
        except BaseException as error:
            if claim.mine and self._holdings.begin(claim.entry, load):
                load.error = error  # before it began: nobody else would, and others wait for it
                self._holdings.over(claim.entry, load)
            raise
        self._wait(load)
        if load.error is not None:
            raise load.error

    def _act(self, claim: Claim, load: Load, asked: Asked) -> None:
        """Perform *load* if that is ours to do."""
        if claim.mine and load.to == "ram" and self._store.is_constructed(asked.name):
            self._perform(claim, load, lambda: self._steps.read(claim, load, asked))
        elif claim.mine or is_moving():
            # A load that leases another model must not wait for a thread that waits for its lock.
            with moving(self._hooks.cancelled()):
                if not load.done.is_set() and load.thread in {None, threading.get_ident()}:
                    self._perform(claim, load, lambda: self._steps.load(claim, load, asked))

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Have whatever a block raises be the cancellation of its request, if that is what has ended it."""
        try:
            yield
        except Exception as error:
            if self._hooks.cancelled().is_set():
                raise RequestCancelled from error
            raise

    def _wait(self, load: Load) -> None:
        """Return when *load* is over; no longer than the request that waits for it is wanted."""
        cancelled = self._hooks.cancelled()
        while not load.done.wait(LOOK_S):
            if cancelled.is_set():
                raise RequestCancelled

    def _perform(self, claim: Claim, load: Load, act: Callable[[], None]) -> None:
        if not self._holdings.begin(claim.entry, load):
            msg = f"the load of {claim.entry.name!r} leases {claim.entry.name!r}"
            raise RuntimeError(msg)
        try:
            with self._stoppable():
                act()
        except BaseException as error:
            load.error = error
            raise
        finally:
            self._holdings.over(claim.entry, load)
            self._hooks.changed()
