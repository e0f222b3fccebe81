"""A fake host with a model cache: it loads, unloads and pins as it is told, and says so on the board."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from falctl import wire
from falctl.board.rows import ModelRow, RunnerRow
from falctl.core.types import Epoch, Hint
from tests.router.fake_host import FakeHost, Seen, answer, wait_on_loop
from tests.router.harness import Setup


@dataclass(eq=False)
class ModelHost(FakeHost):
    """Models named ``no…`` cannot be loaded."""

    tiers: dict[str, str] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)
    loading: dict[str, float] = field(default_factory=dict)
    """Fraction by name."""
    orders: list[dict[str, Any]] = field(default_factory=list)
    loads_wait: threading.Event | None = None
    """Loads do not end before it is set."""
    refuses: tuple[int, str] | None = None
    """How it answers every order."""

    def __post_init__(self) -> None:
        self.declares = {"loads": True, "models_max": 2, **self.declares}
        self.handler = self._serve_model
        super().__post_init__()

    def put_row(self) -> None:
        self.hints = tuple(name for name, tier in self.tiers.items() if tier == "vram")
        rows = [
            ModelRow(name, "ready", 1.0, tier=tier, pinned=name in self.pinned)  # type: ignore[arg-type]
            for name, tier in self.tiers.items()
        ]
        rows += [ModelRow(name, "loading", 1.0, fraction=done) for name, done in self.loading.items()]
        hints = tuple(Hint(hint) for hint in self.hints)
        self._board.put_runner(
            self.runner, RunnerRow(Epoch(self.epoch), self.slots, hints, models=tuple(rows))
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in (wire.LOAD_PATH, wire.MODELS_PATH):
            await super()._app(scope, receive, send)
            return
        order = json.loads((await receive())["body"])
        self.orders.append(order)
        if scope["path"] == wire.LOAD_PATH:
            asyncio.get_running_loop().create_task(self._load(order))
            await answer(send, status=202)
        elif self.refuses is not None:
            status, detail = self.refuses
            await answer(
                send, json.dumps({"detail": detail, "error_type": "conflict"}).encode(), status=status
            )
        else:
            await answer(send, json.dumps(await self._obey(order)).encode())

    async def _load(self, order: dict[str, Any]) -> None:
        name = order["hint"]
        for victim in order["evict"]:
            self.tiers[victim] = "ram"
        if name.startswith("no"):
            self._emit(wire.LoadEnded(self.epoch, name, ok=False, load_s=0.0, error=f"there is no {name}"))
            return
        self.loading[name] = 0.25
        self.put_row()
        if self.loads_wait is not None:
            await wait_on_loop(self.loads_wait)
        del self.loading[name]
        self.tiers[name] = "vram"
        self.put_row()
        self._emit(wire.LoadEnded(self.epoch, name, ok=True, load_s=1.5, tier="disk"))

    async def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        name, before = order["model"], (dict(self.tiers), set(self.pinned))
        match order["do"]:
            case "load":
                self.tiers.setdefault(name, "ram")
            case "unload" if order.get("tier") == "ram":
                self.tiers[name] = "ram"
            case "unload":
                self.tiers.pop(name, None)
            case "pin":
                self.pinned.add(name)
            case "unpin":
                self.pinned.discard(name)
            case other:
                raise AssertionError(other)
        self.put_row()
        return {"tier": self.tiers.get(name), "changed": before != (self.tiers, self.pinned)}

    async def _serve_model(self, seen: Seen, send: Send) -> None:
        await answer(send, str(self.runner).encode())


def add(setup: Setup, runner: int, *models: str, epoch: int = 1, **options: Any) -> ModelHost:
    """Give *setup* a host that holds *models*, in place of the one it had."""
    path = setup.home.runner_socket(runner, epoch)
    tiers = dict.fromkeys(models, "vram")
    host = ModelHost(runner, epoch, path, setup.board.fd, tiers=tiers, **options)
    setup.hosts[runner] = host
    setup.put_life(runner, epoch, "ready")
    return host


@contextlib.contextmanager
def models(
    *held: tuple[str, ...],
    config: dict[str, Any] | None = None,
    apps: dict[str, list[int]] | None = None,
    **options: Any,
) -> Iterator[tuple[Setup, list[ModelHost]]]:
    """Give a router with one host for each of *held*, the models that it has."""
    setup = Setup(runners=len(held), config=config, apps=apps)
    try:
        hosts = [add(setup, runner, *names, **options) for runner, names in enumerate(held)]
        setup.start_router()
        yield setup, hosts
    finally:
        setup.close()
