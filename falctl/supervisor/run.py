"""The supervisor's own life: start everything, watch it until told to stop, stop everything."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from falctl import tasks
from falctl.config import Config, RunnersConfig
from falctl.config_diff import diff_configs, take_live
from falctl.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, FalctlError
from falctl.supervisor import orphans
from falctl.supervisor.announce import Announcer
from falctl.supervisor.fleet import Fleet, Ground
from falctl.supervisor.gpus import Gpus
from falctl.supervisor.keeper import Keeper
from falctl.supervisor.machine_memory import shortage_bytes
from falctl.supervisor.member import Member
from falctl.supervisor.output import say
from falctl.wire import Drain, Ending

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
DEFAULT_APP: Final = RunnersConfig().app
DEMO_MODEL: Final = "digits-ink"
_ROUTER_STOP_S: Final = 5.0
_PIDS_OF_CPU_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """A start that did not succeed: a line for a person, and the exit code of `falctl up`."""

    line: str
    exit_code: int


class Supervisor:
    """
    Runs a fleet from start to end.

    *reload* reads the configuration again, on another thread (it may raise); None: SIGHUP ends us, as it should in a terminal.
    """

    def __init__(
        self,
        ground: Ground,
        config: Config,
        *,
        announcer: Announcer,
        keeper: Keeper,
        reload: Callable[[], Config] | None,
    ) -> None:
        self._fleet = Fleet(ground, config)
        self._gpus = Gpus(
            ground.board, ground.plan.gpus, lost=self._fleet.gpu_lost, struck=self._fleet.gpu_struck
        )
        self._announcer = announcer
        self._keeper = keeper
        self._orphans = orphans.Orphans()
        self._reload = reload
        self._reloading = asyncio.Lock()
        self._stops = 0
        self._asked = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """Return the exit code of `falctl up`."""
        orphans.adopt()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        if self._reload is not None or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else: nohup
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._gpus.start(loop)
        ticking = tasks.spawn(self._tick(), name="tick")
        try:
            outcome = await self._start()
            if outcome is None:
                return await self._serve()
        finally:
            ticking.cancel()
            self._gpus.stop()
            await self._end()
            await self._fleet.memory.close()
        # Said last, where it is found, and when nothing is left of the attempt.
        self._announcer.note(outcome.line)
        self._announcer.done(exit_code=outcome.exit_code)
        return outcome.exit_code

    def stop(self) -> None:
        """Begin to stop; asked a second time, stop at once."""
        self._stops += 1
        self._asked.set()
        if self._stops > 1:
            self._hurry.set()
        self._fleet.news.set()

    # --- start -----------------------------------------------------------------------------------

    async def _start(self) -> _Failure | None:
        """Return None once everything is ready, else why it is not."""
        self._fleet.begin()
        while not self._stops:
            self._fleet.news.clear()
            members = [self._fleet.router, *self._fleet.runners.values()]
            for member in members:
                if member.life.state in ("backoff", "failed"):
                    return _Failure(f"falctl: {member.name}: {member.life.reason}", member.exit_code)
            if all(member.life.state == "ready" for member in members):
                return None
            self._announcer.progress(_progress(members))
            await self._fleet.news.wait()
        return _Failure("falctl: told to stop while it started", EXIT_INTERRUPTED)

    # --- service ---------------------------------------------------------------------------------

    async def _serve(self) -> int:
        self._announcer.note(self._listening())
        if tls_url := self._fleet.ground.tls_url:
            self._announcer.note(f"falctl: also at {tls_url}; `falctl env` prints what clients need for it")
        for line in self._addresses():
            self._announcer.note(f"falctl:   {line}")
        self._announcer.note(next_steps(self._fleet.config))
        self._announcer.done(exit_code=None)
        while not self._stops:
            self._fleet.news.clear()
            if self._fleet.router.life.state == "failed":
                log.error("router.given_up %s", self._fleet.router.life.reason)
                return EXIT_FAILED
            await self._fleet.news.wait()
        await self._drain()
        return EXIT_INTERRUPTED if self._hurry.is_set() else EXIT_OK

    def _listening(self) -> str:
        fleet = self._fleet
        plan = fleet.ground.plan
        kind = "CPU " if plan.on_cpu else "GPU " if all(planned.cards for planned in plan.runners) else ""
        count = len(fleet.runners)
        runners = f"{count} {kind}runner{'s' if count > 1 else ''}"
        return f"falctl: {runners} of {fleet.config.app_names} behind {fleet.ground.url}"

    def _addresses(self) -> list[str]:
        """Return how clients of fal call each app, if there is more than one way."""
        names = {member.app_name for member in self._fleet.runners.values()}
        one = [f"{name}: /run/{{owner}}/{name} to fal's clients, as any alias" for name in names if name]
        return self._fleet.ground.plan.told() or one

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            self._fleet.tick()
            ticks += 1
            if ticks % round(_PIDS_OF_CPU_S / TICK_S) == 0:
                self._gpus.tick(self._pids())
                self._fleet.memory.tick(shortage_bytes)
                self._keeper.heal()
                self._orphans.reap(self._fleet.pids())

    def _pids(self) -> list[int]:
        """Return the process of each row of the board, for the rows of CPU runners."""
        pids = [0] * len(self._fleet.ground.plan.gpus)
        for planned in self._fleet.ground.plan.runners:
            child = self._fleet.runners[planned.runner].child
            for row in planned.gpu_rows:
                pids[row] = 0 if child is None else child.pid
        return pids

    def _hang_up(self) -> None:
        if self._reload is None:
            # A shell that ends and its terminal may both tell us: the second time is no second Ctrl-C.
            if not self._stops:
                self.stop()
            return
        tasks.spawn(self._read_anew(self._reload), name="reload")

    async def _read_anew(self, reload: Callable[[], Config]) -> None:
        async with self._reloading:  # the last one asked for is the last one applied
            try:
                config = await asyncio.to_thread(reload)
            except FalctlError as error:
                log.error("config.refused %s; the old one stays", error)  # noqa: TRY400 - the user's mistake, not ours
                return
            self._take_up(config)

    def _take_up(self, config: Config) -> None:
        for change in diff_configs(self._fleet.config, config):
            when = "now" if change.live else "needs a restart"
            log.info("config.changed %s %r -> %r (%s)", change.key, change.old, change.new, when)
        self._fleet.reload(take_live(self._fleet.config, config))
        logging.getLogger().setLevel(config.log.level.upper())

    # --- end -------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Let what runs finish: the router refuses what is new and what waits."""
        runners = self._fleet.runners.values()
        declared = [member.grace_s for member in runners if member.grace_s is not None]
        within_s = max(declared, default=self._fleet.config.runners.drain_timeout)
        router = self._fleet.router
        if self._hurry.is_set() or within_s == 0 or router.life.state != "ready":
            return
        say(
            f"falctl: stopping; what runs gets {within_s:g} s to finish, what waits is refused (Ctrl-C again: at once)"
        )
        router.send(Drain(within_s))
        for member in runners:
            member.send(Ending())
        waits = [tasks.spawn(event.wait(), name="drain") for event in (router.drained, self._hurry)]
        await asyncio.wait(waits, timeout=within_s + 1.0, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _end(self) -> None:
        """Leave no process: politely within `runners.teardown_timeout`, at once when hurried."""
        teardown_s = self._fleet.config.runners.teardown_timeout
        runners = [self._stop_member(m, teardown_s) for m in self._fleet.runners.values()]
        await asyncio.gather(*runners)
        await self._stop_member(self._fleet.router, _ROUTER_STOP_S)
        await orphans.end_all(self._fleet.pids())

    async def _stop_member(self, member: Member, within_s: float) -> None:
        stopping = tasks.spawn(member.stop(within_s=0.0 if self._hurry.is_set() else within_s), name="stop")
        hurrying = tasks.spawn(self._hurry.wait(), name="hurry")
        await asyncio.wait((stopping, hurrying), return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        while not stopping.done():
            if member.child is not None:
                member.child.kill()
            await asyncio.wait((stopping,), timeout=0.05)


def next_steps(config: Config) -> str:
    """Return what a person may type now; by its path where the command is not on PATH, as in a fresh .venv."""
    falctl = "falctl" if shutil.which("falctl") else str(Path(sys.executable).with_name("falctl"))
    draw = f'{falctl} run {DEMO_MODEL} "seven" -o seven.png' if config.app_names == DEFAULT_APP else ""
    return "next, in another terminal:  " + "  ·  ".join(
        filter(None, (draw, f"{falctl} status", f"{falctl} down"))
    )


def _progress(members: list[Member]) -> str:
    waiting = [f"{m.name}: {m.life.reason or m.life.state}" for m in members if m.life.state != "ready"]
    return f"starting, {len(members) - len(waiting)} of {len(members)} processes ready · " + " · ".join(
        waiting[:4]
    )
