"""The runners and the router together: what each is launched with, what of them stands on the board, who is hung."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from falctl.board.board import Board
from falctl.board.rows import LifeRow, RouterRow
from falctl.clock import monotonic_s
from falctl.config import Config
from falctl.config_values import FOR_EVER
from falctl.core.host_memory import Holder
from falctl.core.lifecycle import Begin, Condemned, LifeLimits, Struck, Tick, Vitals, Watched
from falctl.core.lookout import Lookout, watched_s
from falctl.core.types import Epoch, RunnerId
from falctl.home import Home
from falctl.supervisor.child import Launch
from falctl.supervisor.host_memory import HostMemory
from falctl.supervisor.listen import public_url
from falctl.supervisor.member import Member
from falctl.supervisor.plan import Plan, PlannedRunner, runner_environ
from falctl.wire import HostSpec, LogLevel, Reload, RouterSpec, RunnerChanged

log = logging.getLogger(__name__)

ROUTER_SILENCE_MAX_S: Final = 30.0
"""A router whose loop has not beaten for this long is restarted, unless it is stopped (DESIGN, contract 4)."""

_ROUTER_LIMITS: Final = LifeLimits(
    setup_timeout_s=60.0,
    request_timeout_s=float("inf"),
    stall_timeout_s=float("inf"),
    restarts_max=20,
    restarts_window_s=600.0,
    backoff_min_s=0.1,  # clients wait in the listening socket meanwhile
    backoff_max_s=10.0,
)


@dataclass(frozen=True, slots=True)
class Ground:
    """What the whole fleet stands on, made before anything starts and closed after everything has ended."""

    home: Home
    plan: Plan
    board: Board
    listener: socket.socket
    life_fd: int
    """Read end of the pipe whose write end dies with us."""
    url: str
    admin_token: str
    tls: socket.socket | None = None
    tls_url: str = ""
    memory_bytes: int = 0
    """What the runners may hold of weights together; 0: each has memory of its own."""
    cpu_bytes: int = 0
    """What each CPU runner may fill with models and drawings."""


class Fleet:
    """Owns the members. ``news`` is set after every change of any of them."""

    def __init__(self, ground: Ground, config: Config) -> None:
        self.ground = ground
        self.config = config
        self.news = asyncio.Event()
        keep_s = config.cache.keep_alive
        self.memory = HostMemory(
            ground.memory_bytes,
            keep_alive_s=None if keep_s == FOR_EVER else keep_s,
            changed=ground.board.put_memory,
            registers=not ground.plan.on_cpu,
        )
        self.runners = {planned.runner: self._runner(planned) for planned in ground.plan.runners}
        self.router = Member(
            "router", _ROUTER_LIMITS, launch=self._launch_router, changed=self.news.set, buried=lambda: None
        )
        self._given = sorted(config.runners.model_fields_set)
        """What of [runners] was written; a configuration that was reloaded does not tell any more."""
        self._sent_since: dict[RunnerId, float] = {}
        self._router_stopped_at = 0.0
        self._lookout = Lookout()
        self._cwd = str(Path.cwd())  # once: it may have been deleted when a runner is restarted

    def begin(self) -> None:
        """Start everything."""
        self.router.feed(Begin())
        for member in self.runners.values():
            member.feed(Begin())

    def tick(self) -> None:
        """Let time pass in every life: pauses end, the hung are found."""
        self._lookout.look(now=monotonic_s())
        self.router.feed(Tick())
        self._watch_router(self.ground.board.router())
        for runner, member in self.runners.items():
            member.feed(Tick())
            member.feed(Watched(member.life.epoch, self._vitals(runner)))

    def reload(self, config: Config) -> None:
        """Let the router, the runners, and all later ones, go by *config*, which differs from ours in what needs no restart."""
        if config.log.level != self.config.log.level:
            for member in self.runners.values():
                member.send(LogLevel(config.log.level))
        self.config = config
        row = self.ground.board.fleet()
        assert row is not None, "written before anything started"
        self.ground.board.put_fleet(replace(row, policy=config.routing.policy))
        self.router.send(Reload(config.model_dump(mode="json")))

    def gpu_lost(self, gpu_row: int, what: str) -> None:
        """End the runners pinned to a card that is gone; the others go on."""
        self._all_on(gpu_row, Condemned(what))

    def gpu_struck(self, gpu_row: int, what: str) -> None:
        """Replace the runners pinned to a card that spoilt what they hold."""
        self._all_on(gpu_row, Struck(what))

    def pids(self) -> set[int]:
        """Return the processes that run now."""
        members = [self.router, *self.runners.values()]
        return {member.child.pid for member in members if member.child is not None}

    def _all_on(self, gpu_row: int, event: Condemned | Struck) -> None:
        for planned in self.ground.plan.runners:
            if gpu_row in planned.gpu_rows:
                self.runners[planned.runner].feed(event)

    # --- runners ---------------------------------------------------------------------------------

    def _runner(self, planned: PlannedRunner) -> Member:
        return Member(
            planned.name,
            life_limits(self.config),
            launch=lambda epoch: self._launch_runner(planned, epoch),
            changed=lambda: self._publish(planned),
            buried=lambda: self._bury(planned.runner),
        )

    def _launch_runner(self, planned: PlannedRunner, epoch: Epoch) -> Launch:
        ground = self.ground
        peers = ground.plan.apps[planned.alias]
        ground.home.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = HostSpec(
            runner=planned.runner,
            epoch=epoch,
            app=planned.app,
            alias=planned.alias,
            place=peers.index(planned),
            peers=len(peers),
            given=self._given,
            cwd=self._cwd,
            socket=str(ground.home.runner_socket(planned.runner, epoch)),
            cards=[card.uuid for card in planned.cards],
            card_names=[card.name for card in planned.cards],
            driver=ground.plan.driver,
            files_dir=str(ground.home.files),
            files_url=self._files_url(),
            config=self.config.model_dump(mode="json"),
            data_dir=str(ground.home.data),
            state_dir=str(ground.home.root),
            cpu_bytes=None if planned.cards else ground.cpu_bytes,
        )
        return Launch(
            module="falctl.host",
            name=planned.name,
            spec=spec,
            board_fd=ground.board.fd,
            life_fd=ground.life_fd,
            environ=runner_environ(planned, ground.plan, self.config, os.environ),
            memory=self.memory.connect(Holder(planned.runner, epoch)) if ground.memory_bytes else None,
        )

    def _bury(self, runner: RunnerId) -> None:
        self.ground.board.reset_runner(runner)
        self.memory.bury(Holder(runner, self.runners[runner].life.epoch))

    def _files_url(self) -> str:
        return f"{public_url(self.ground.url, self.config.server)}/files"

    def _publish(self, planned: PlannedRunner) -> None:
        member = self.runners[planned.runner]
        life = member.life
        row = LifeRow(
            runner=planned.runner,
            epoch=life.epoch,
            pid=member.child.pid if member.child is not None else 0,
            state=life.state,
            since_at=life.since_at,
            restarts=life.restarts,
            reason=life.reason,
            gpus=planned.gpu_rows,
            restart_at=life.restart_at,
            app=planned.alias,
        )
        self.ground.board.put_life(planned.runner, row)
        self.router.send(RunnerChanged(planned.runner, life.epoch, life.state, life.reason))
        self.news.set()

    def _vitals(self, runner: RunnerId) -> Vitals | None:
        row = self.ground.board.runner(runner)
        if row is None:
            return None
        loading = (model.used_at for model in row.models if model.state == "loading")
        since = min((*(e.started_at for e in row.executing), *loading), default=None)
        if since is None:
            since = self._unheard_since(runner)
        else:
            self._sent_since.pop(runner, None)
        return Vitals(since, row.beat_at, row.progress_at, row.progress_known, self._lookout.gaps)

    def _unheard_since(self, runner: RunnerId) -> float | None:
        """Return since when the router waits for a runner that does not even say that it executes, or loads."""
        row = self.ground.board.router()
        if row is None or not any(
            counts[runner : runner + 1] > (0,) for counts in (row.in_flight, row.loading)
        ):
            self._sent_since.pop(runner, None)
            return None
        return self._sent_since.setdefault(runner, monotonic_s())

    # --- router ----------------------------------------------------------------------------------

    def _launch_router(self, epoch: Epoch) -> Launch:
        ground = self.ground
        spec = RouterSpec(
            epoch=epoch,
            home=str(ground.home.root),
            url=ground.url,
            admin_token=ground.admin_token,
            config=self.config.model_dump(mode="json"),
            cwd=self._cwd,
            apps={
                alias: [planned.runner for planned in runners]
                for alias, runners in ground.plan.apps.items()
                if alias
            },
            files_url=self._files_url(),
        )
        return Launch(
            module="falctl.router",
            name="router",
            spec=spec,
            board_fd=ground.board.fd,
            life_fd=ground.life_fd,
            listen_fd=ground.listener.fileno(),
            tls_fd=ground.tls.fileno() if ground.tls is not None else None,
            environ=os.environ,
        )

    def _watch_router(self, row: RouterRow | None) -> None:
        self.router.feed(Watched(self.router.life.epoch, None))
        child = self.router.child
        if child is None or row is None or row.pid != child.pid or self.router.life.state != "ready":
            return
        if child.stopped():
            self._router_stopped_at = monotonic_s()  # when it goes on it needs a moment for its first beat
        silent_from = max(row.beat_at, self._router_stopped_at)
        if watched_s(silent_from, self._lookout.gaps, now=monotonic_s()) > ROUTER_SILENCE_MAX_S:
            log.warning("router.killed epoch=%d reason=no beat for %.0f s", row.epoch, ROUTER_SILENCE_MAX_S)
            child.kill()


def life_limits(config: Config) -> LifeLimits:
    """Return the limits of a runner's life."""
    runners = config.runners
    return LifeLimits(
        setup_timeout_s=runners.setup_timeout,
        request_timeout_s=runners.request_timeout,
        stall_timeout_s=runners.stall_timeout,
        restarts_max=runners.restarts_max,
        restarts_window_s=runners.restarts_window,
        backoff_min_s=runners.backoff_min,
        backoff_max_s=runners.backoff_max,
    )
