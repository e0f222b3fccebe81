"""Feeds the scheduler of one app and does what it says: the only code that touches it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias, assert_never

from falctl.clock import monotonic_s
from falctl.config import QueueConfig, RoutingConfig
from falctl.core.events import (
    Arrived,
    Bounced,
    Cancelled,
    Dispatch,
    Drains,
    Event,
    HintsChanged,
    Load,
    PinsChanged,
    Refuse,
    Released,
    TellWish,
    Tick,
)
from falctl.core.policies import Policy
from falctl.core.scheduler import Scheduler
from falctl.core.sources import Stock
from falctl.core.types import Epoch, Hint, RequestId, RunnerId
from falctl.policy_load import Tuning, find_policy, is_foreign
from falctl.router.dispatch.foreign import Foreign
from falctl.router.own.ledger import Ledger

TICK_S: Final = 0.05
"""How late a hold or an overdue limit may fire while nothing else happens."""

Decision: TypeAlias = "asyncio.Future[Dispatch | Refuse | None]"
"""What becomes of a waiting request; None: it was cancelled."""


class Driver:
    """
    Owner of the scheduler and of the promises made to those who wait.

    `handle` performs every action before it returns: no ``await`` stands between a decision and its effect.
    """

    def __init__(self, *, routing: RoutingConfig, queue: QueueConfig, ledger: Ledger, cwd: Path) -> None:
        self._cwd = cwd
        self.scheduler = Scheduler(
            self.make_policy(routing), queue_max=queue.max, client_max=queue.max_per_client
        )
        self._ledger = ledger
        self._waiting: dict[RequestId, Decision] = {}
        self._loop = asyncio.get_running_loop()
        self._tick: asyncio.TimerHandle | None = None
        self.load: Callable[[Load], None] = _nowhere
        """Where loads are sent; the links to the runners set it."""
        self.tell_wish: Callable[[TellWish], None] = _nobody
        """Who hears what becomes of wishes for models; `ModelWishes` sets it."""

    def configure(self, policy: Policy, queue: QueueConfig) -> None:
        """Decide by these rules from now on."""
        self.scheduler.policy = policy
        self.scheduler.entrance.queue_max = queue.max
        self.scheduler.entrance.client_max = queue.max_per_client

    def submit(self, arrived: Arrived) -> Decision:
        """Let a request whose body has been read wait for a runner."""
        decision = self._promise(arrived.request)
        self.handle(arrived)
        return decision

    def bounce(self, dispatch: Dispatch, arrived: Arrived) -> Decision:
        """Let a request wait again that its runner did not take."""
        request = arrived.request
        decision = self._promise(request)
        self.handle(Bounced(request, dispatch.runner, dispatch.epoch))
        if not decision.done() and request not in self.scheduler.queue:
            # The runner went down in between, and the scheduler forgot what was in flight there.
            self.handle(arrived)
        return decision

    def cancel(self, request: RequestId) -> None:
        """The client of a request is gone; its decision, if it still waits for one, is None."""
        self.handle(Cancelled(request))
        if (decision := self._waiting.pop(request, None)) is not None and not decision.done():
            decision.set_result(None)

    def withdraw(self, request: RequestId) -> bool:
        """Refuse a request that waits, as somebody wants; False: it does not wait."""
        if request not in self._waiting:
            return False
        self.handle(Cancelled(request))
        if not (decision := self._waiting.pop(request)).done():
            decision.set_result(Refuse(request, "cancelled"))
        return True

    def release(self, dispatch: Dispatch) -> None:
        """A dispatched request has not reached its runner and will not."""
        self.handle(Released(dispatch.request, dispatch.runner, dispatch.epoch))

    def tell_hints(self, runner: RunnerId, epoch: Epoch, hints: frozenset[Hint] | None, stock: Stock) -> None:
        """Tell what stands on the board for a runner; nothing happens if that is known."""
        view = self.scheduler.fleet.runners.get(runner)
        if view is None or view.epoch != epoch:
            return
        if view.counted(hints) != view.hints or self.scheduler.state.is_news(view, stock):
            self.handle(HintsChanged(runner, epoch, hints, stock))

    def tell_pins(self, runner: RunnerId, epoch: Epoch, pinned: frozenset[Hint]) -> None:
        """Tell which models are pinned on a runner, by the board; nothing happens if that is known."""
        view = self.scheduler.fleet.runners.get(runner)
        if view is not None and view.epoch == epoch and view.pinned != pinned:
            self.handle(PinsChanged(runner, epoch, pinned))

    def place_s(self) -> float:
        """Return in how many seconds the next place in the queue should turn free."""
        return self.scheduler.entrance.place_s(now=monotonic_s())

    def drain(self) -> None:
        """Refuse what waits and whatever comes."""
        self.handle(Drains())

    def handle(self, event: Event) -> None:
        """Tell the scheduler of *event* and do what it wants done."""
        for action in self.scheduler.handle(event, now=monotonic_s()):
            match action:
                case Load():
                    self.load(action)
                case TellWish():
                    self.tell_wish(action)
                case Dispatch() | Refuse():
                    decision = self._waiting.pop(action.request)
                    if not decision.done():
                        decision.set_result(action)
                case _:
                    assert_never(action)
        self._ledger.changed = True
        if self._tick is None and len(self.scheduler.queue):
            self._tick = self._loop.call_later(TICK_S, self._on_tick)

    def make_policy(self, routing: RoutingConfig) -> Policy:
        """
        Return the policy that *routing* names.

        Raises:
            ConfigError: it cannot be made.
        """
        tuning = Tuning(routing.hold, routing.bypass_max, routing.locality)
        policy = find_policy(routing.policy, cwd=self._cwd, tuning=tuning)
        if not is_foreign(routing.policy):
            return policy
        deputy = find_policy(RoutingConfig().policy, cwd=self._cwd, tuning=tuning)
        return Foreign(routing.policy, policy, deputy=deputy)

    def _on_tick(self) -> None:
        self._tick = None
        self.handle(Tick())

    def _promise(self, request: RequestId) -> Decision:
        decision: Decision = self._loop.create_future()
        self._waiting[request] = decision
        return decision


def _nobody(told: TellWish) -> None:
    msg = f"nobody wished for {told}"
    raise AssertionError(msg)


def _nowhere(load: Load) -> None:
    msg = f"nobody performs {load}"
    raise AssertionError(msg)
