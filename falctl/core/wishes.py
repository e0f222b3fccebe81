"""
Loads that somebody wishes for by the model's name, without a request: a person, or the configuration.

    Wished ── there, or hopeless ─────────────────────────────► told, over
       │
       ├── a runner loads it anyway ──► joined ─┐
       └── a runner can begin it ─────► begun ──┴─ LoadEnded ─► loaded or failed; its runner gone: lost

A person's wish goes before requests that wait, as soon as a runner is free to load, and may cost models that nobody
waits for. One of the configuration takes what requests leave, and only free room. A wish that nobody can grant now
waits; it holds no request up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from falctl.core.events import LoadEnded, TellWish, WishDropped, Wished, WishNews
from falctl.core.fleet import Runner
from falctl.core.policies.base import LoadModel, State
from falctl.core.policies.knobs import Knobs
from falctl.core.policies.look import Look, look_at
from falctl.core.policies.placing import place
from falctl.core.policies.space import outgrows, pinned_out
from falctl.core.types import Epoch, RunnerId

_ASKED: Final = "somebody asked for it"
_CONFIGURED: Final = "cache.preload asks for it"


@dataclass(slots=True)
class Wishes:
    """Owner of the wishes for models; the scheduler performs what it chooses."""

    state: State
    _waiting: dict[int, Wished] = field(default_factory=dict)
    _under_way: dict[int, tuple[Wished, RunnerId, Epoch]] = field(default_factory=dict)

    def hear(self, event: Wished | WishDropped) -> None:
        """Take a new wish, or forget one; a load that was begun for that goes on."""
        if isinstance(event, Wished):
            self._waiting[event.number] = event
        else:
            self._waiting.pop(event.number, None)
            self._under_way.pop(event.number, None)

    @property
    def pending(self) -> bool:
        """Return whether anybody waits for one."""
        return bool(self._waiting or self._under_way)

    def settle(self) -> list[TellWish]:
        """Tell of each wish what can be told without a load: that it is fulfilled, under way, or beyond hope."""
        told = [news for number in tuple(self._under_way) if (news := self._look_after(number)) is not None]
        for wish in tuple(self._waiting.values()):
            if (news := self._judge(wish)) is not None:
                del self._waiting[wish.number]
                told.append(news)
        return told

    def choose(self, *, first: bool, now: float) -> LoadModel | TellWish | None:
        """Return the next load that can begin now, of the wishes that go *first* or of the others, or that one is over."""
        look: Look | None = None  # takes a while, and many may wait for one busy runner
        for wish in self._waiting.values():
            if wish.first is not first:
                continue
            able = [r for r in self._considered(wish) if r.takes_jobs and not self._pinned_out(wish, r)]
            if not any(runner.can_load for runner in able):
                continue
            look = look or look_at(self.state, Knobs(), now=now)
            found = place(look, wish.hint, able, evicting=wish.first)
            if found == "full":
                del self._waiting[wish.number]
                return TellWish(wish.number, "full")
            if found is not None:
                return LoadModel(wish.hint, *found, _ASKED if wish.first else _CONFIGURED)
        return None

    def ended(self, event: LoadEnded) -> list[TellWish]:
        """Tell those who wished for a load that it is over."""
        news: WishNews = "loaded" if event.ok else "failed"
        told = []
        for number, (wish, runner, _) in tuple(self._under_way.items()):
            if (wish.hint, runner) == (event.hint, event.runner):
                del self._under_way[number]
                told.append(
                    TellWish(number, news, runner, load_s=event.load_s, tier=event.tier, error=event.error)
                )
        return told

    def began(self, move: LoadModel) -> list[TellWish]:
        """Tell those who wish for what *move* loads."""
        epoch = self.state.fleet.runners[move.runner].epoch
        told = []
        for wish in tuple(self._waiting.values()):
            if wish.hint == move.hint and wish.runner in (None, move.runner):
                del self._waiting[wish.number]
                self._under_way[wish.number] = (wish, move.runner, epoch)
                told.append(TellWish(wish.number, "begun", move.runner, evict=move.evict))
        return told

    def _look_after(self, number: int) -> TellWish | None:
        """Return what became of a load whose end was not heard of; None: it goes on."""
        wish, runner, epoch = self._under_way[number]
        view = self.state.fleet.runners.get(runner)
        if view is not None and view.epoch == epoch:
            if wish.hint in view.loading:
                return None
            news: WishNews = "there" if wish.hint in (view.hints or ()) else "failed"
        else:
            news = "lost"
        del self._under_way[number]
        return TellWish(number, news, runner)

    def _judge(self, wish: Wished) -> TellWish | None:
        """Return why *wish* need not wait any more; None: it has to."""
        for runner in self._considered(wish):
            if wish.hint in (runner.hints or ()):
                return TellWish(wish.number, "there", runner.runner)
            if wish.hint in runner.loading:
                self._under_way[wish.number] = (wish, runner.runner, runner.epoch)
                return TellWish(wish.number, "joined", runner.runner)
        why = None if self._may_come(wish) else self._hopeless(wish)
        return None if why is None else TellWish(wish.number, why)

    def _hopeless(self, wish: Wished) -> WishNews | None:
        """Return why none of the runners that are up will ever grant *wish*; None: one may."""
        considered = list(self._considered(wish))
        able = [runner for runner in considered if runner.takes_jobs]
        if not able:
            return "takes_no_loads" if considered else "no_runner"
        lasting = [runner for runner in able if not self._outgrows(wish, runner)]
        if not lasting:
            return "too_large"
        return "pins_leave_no_room" if all(self._pinned_out(wish, runner) for runner in lasting) else None

    def _considered(self, wish: Wished) -> Iterator[Runner]:
        runners = self.state.fleet.runners.values()
        return (runner for runner in runners if wish.runner in (None, runner.runner))

    def _may_come(self, wish: Wished) -> bool:
        returning = self.state.fleet.returning
        return wish.runner in returning if wish.runner is not None else bool(returning)

    def _outgrows(self, wish: Wished, runner: Runner) -> bool:
        others = self.state.fleet.runners.values()
        return outgrows(wish.hint, runner, others=others, costs=self.state.costs)

    def _pinned_out(self, wish: Wished, runner: Runner) -> bool:
        return pinned_out(runner, wish.hint, self.state.costs)
