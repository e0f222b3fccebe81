"""`falctl up`, from a configuration to an exit code: takes the ground that the fleet stands on, and gives it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final

from falctl.board.board import Board
from falctl.board.rows import FleetRow, MemoryRow
from falctl.clock import monotonic_s
from falctl.config import Config, ServerConfig
from falctl.home import Instance, find_home
from falctl.supervisor import listen, nvml
from falctl.supervisor.announce import Announcer
from falctl.supervisor.fleet import Ground
from falctl.supervisor.keeper import Keeper
from falctl.supervisor.machine_memory import suggested_bytes
from falctl.supervisor.plan import Plan, make_plan, wants_cards
from falctl.supervisor.run import Supervisor
from falctl.version import __version__

log = logging.getLogger(__name__)

_PROBE_S: Final = 30.0
"""NVML's first call wakes cards without persistence mode, 1 to 3 s each; far beyond that the driver hangs."""


def up(config: Config, *, announcer: Announcer, detached: bool, reload: Callable[[], Config] | None) -> int:
    """
    Run falctl until it is told to stop; return the exit code. Blocks.

    Raises:
        FalctlError: it cannot start; nothing is left running.
    """
    keeper = Keeper(find_home())
    keeper.take()
    try:
        with _ground(config, keeper, announcer, detached=detached) as ground:
            return asyncio.run(_supervise(ground, config, keeper, announcer, reload))
    finally:
        keeper.release()


async def _supervise(
    ground: Ground, config: Config, keeper: Keeper, announcer: Announcer, reload: Callable[[], Config] | None
) -> int:
    supervisor = Supervisor(ground, config, announcer=announcer, keeper=keeper, reload=reload)
    return await supervisor.run()


@contextlib.contextmanager
def _ground(config: Config, keeper: Keeper, announcer: Announcer, *, detached: bool) -> Iterator[Ground]:
    plan = make_plan(config, _machine(config), os.environ)
    if plan.on_cpu:
        _say_why_cpu(config, plan, announcer)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen.bind(config.server.host, config.server.port))
        url = listen.url_of(listener)
        tls = _listen_for_tls(config.server, stack)
        tls_url = listen.url_of(tls, scheme="https") if tls is not None else ""
        board = Board.create(keeper.home.board, runners=len(plan.runners), gpus=len(plan.gpus))
        stack.callback(board.close)
        life_read, life_write = os.pipe()
        stack.callback(os.close, life_read)
        stack.callback(os.close, life_write)
        board.put_fleet(
            FleetRow(__version__, os.getpid(), url, config.app_names, config.routing.policy, monotonic_s())
        )
        suggested = suggested_bytes()
        memory_bytes = suggested if config.cache.host_memory is None else config.cache.host_memory
        cpu_bytes = plan.cpu_share(suggested) if config.cache.cpu_memory is None else config.cache.cpu_memory
        board.put_memory(MemoryRow(memory_bytes))
        keeper.describe(Instance(os.getpid(), url, detached, tls_url))
        yield Ground(
            keeper.home,
            plan,
            board,
            listener,
            life_read,
            url,
            keeper.token,
            tls,
            tls_url,
            memory_bytes=memory_bytes,
            cpu_bytes=cpu_bytes,
        )


def _listen_for_tls(server: ServerConfig, stack: contextlib.ExitStack) -> socket.socket | None:
    if server.tls == "off":
        return None
    return stack.enter_context(listen.bind(server.host, server.tls_port, key="tls_port"))


def _machine(config: Config) -> nvml.Machine | None:
    return nvml.probe_within(_PROBE_S) if wants_cards(config) else None


def _say_why_cpu(config: Config, plan: Plan, announcer: Announcer) -> None:
    count, key = len(plan.runners), "runners.count" if config.runners.count else "runners.cpu_count"
    if config.apps:
        why, key = "no GPU is asked for" if not wants_cards(config) else "no GPU is visible here", "cpu_count"
    else:
        why = 'runners.gpus is "none"' if config.runners.gpus == "none" else "no GPU is visible here"
    announcer.note(f"falctl: {why}: starting {count} CPU runner{'s' if count > 1 else ''} ({key})")
