"""What is going to run: the runners of each app, their cards, and the environment that pins it to them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from falctl.config import Config
from falctl.core.cards import Card, assign, repeat, share_out, visible
from falctl.core.types import RunnerId
from falctl.errors import ConfigError
from falctl.supervisor.nvml import Machine


@dataclass(frozen=True, slots=True)
class PlannedRunner:
    """A runner-to-be. ``gpu_rows`` are its rows on the board: of its cards, or its own for a CPU runner."""

    runner: RunnerId
    cards: tuple[Card, ...]
    gpu_rows: tuple[int, ...]
    app: str
    """What it serves: ``module:Class`` or ``path.py::Class``."""
    alias: str = ""
    """The name of that among several apps; empty: there is one."""

    @property
    def name(self) -> str:
        """Return what it is called in output: ``cpu1``, or ``gpu0``, ``gpu0+1`` and its number behind a dot."""
        where = "+".join(str(card.index) for card in self.cards)
        name = f"gpu{where}.{self.runner}" if where else f"cpu{self.runner}"
        return f"{self.alias}:{name}" if self.alias else name


@dataclass(frozen=True, slots=True)
class Plan:
    """The fleet. ``gpus`` are the cards by row of the board; a CPU runner's row has None."""

    runners: tuple[PlannedRunner, ...]
    gpus: tuple[Card | None, ...]
    driver: str

    @property
    def on_cpu(self) -> bool:
        """Return whether there is no card to use."""
        return all(card is None for card in self.gpus)

    @property
    def apps(self) -> dict[str, list[PlannedRunner]]:
        """Return the runners of each app by its alias."""
        found: dict[str, list[PlannedRunner]] = {}
        for planned in self.runners:
            found.setdefault(planned.alias, []).append(planned)
        return found

    def cpu_share(self, total_bytes: int) -> int:
        """Return what each CPU runner has of *total_bytes* that they share; 0: there is none."""
        count = sum(not planned.cards for planned in self.runners)
        return total_bytes // count if count else 0

    def told(self) -> list[str]:
        """Return the runners of each of several apps in words: ``draw: 2 runners of draw.py::Draw on GPU 0 and 1``."""
        return [_told(alias, runners) for alias, runners in self.apps.items() if alias]


@dataclass(frozen=True, slots=True)
class _Share:
    """What one app gets. No groups of cards: it runs on the CPU."""

    alias: str
    app: str
    groups: tuple[tuple[Card, ...], ...]
    cpu_count: int


def make_plan(config: Config, machine: Machine | None, environ: Mapping[str, str]) -> Plan:
    """
    Return what to start on *machine* (None: no NVIDIA driver) for a caller with this *environ*.

    Raises:
        ConfigError: a card that is named cannot be used, or an app gets none.
    """
    cards = visible(machine.cards, environ.get("CUDA_VISIBLE_DEVICES")) if machine else ()
    return _lay_out(_shares(config, cards), machine.driver if machine else "")


def wants_cards(config: Config) -> bool:
    """Return whether anybody asks for a GPU: else a sick driver must not matter."""
    choices = [app.gpus for app in config.apps.values()] or ["all"]
    return any(choice != "none" and (choice != "all" or config.runners.gpus != "none") for choice in choices)


def _shares(config: Config, cards: Sequence[Card]) -> list[_Share]:
    runners = config.runners
    pool = assign(runners.gpus, cards, count=0 if config.apps else runners.count)
    if not config.apps:
        return [_Share("", runners.app, pool, runners.count or runners.cpu_count)]
    named = {
        alias: assign(app.gpus, cards, count=app.count, key=f"apps.{alias}.gpus")
        for alias, app in config.apps.items()
        if app.gpus not in ("all", "none")
    }
    sharing = [alias for alias, app in config.apps.items() if app.gpus == "all"]
    taken = {card for groups in named.values() for group in groups for card in group}
    parts = share_out(pool, named=taken, shares=max(len(sharing), 1))
    for alias, part in zip(sharing, parts, strict=False):
        named[alias] = repeat(part, config.apps[alias].count)
        if pool and not part:
            raise ConfigError(_none_left(alias, pool, sharing))
    return [
        _Share(alias, app.app, named.get(alias, ()), app.count or app.cpu_count or runners.cpu_count)
        for alias, app in config.apps.items()
    ]


def _none_left(alias: str, pool: Sequence[Sequence[Card]], sharing: Sequence[str]) -> str:
    indices = ", ".join(str(card.index) for group in pool for card in group)
    others = [other for other in sharing if other != alias]
    why = (
        f"shares what others do not name with {', '.join(others)}"
        if others
        else "gets what others do not name"
    )
    return (
        f'apps.{alias}.gpus = "all": of GPU {indices} none is left, as it {why}; '
        'name cards in both tables to share one, or write "none" for CPU runners'
    )


def _lay_out(shares: Sequence[_Share], driver: str) -> Plan:
    rows: list[Card | None] = []
    planned: list[PlannedRunner] = []
    for share in shares:
        for group in share.groups or ((),) * share.cpu_count:
            rows += [card for card in group if card not in rows] or ([] if group else [None])
            on = tuple(rows.index(card) for card in group) or (len(rows) - 1,)
            planned.append(PlannedRunner(RunnerId(len(planned)), group, on, share.app, share.alias))
    return Plan(tuple(planned), tuple(rows), driver if any(rows) else "")


def _told(alias: str, runners: Sequence[PlannedRunner]) -> str:
    count = f"{len(runners)} runner{'s' if len(runners) > 1 else ''}"
    cards = ["+".join(str(card.index) for card in planned.cards) for planned in runners if planned.cards]
    where = f"GPU {', '.join(cards)}" if cards else "the CPU"
    return f"{alias}: {count} of {runners[0].app} on {where}"


def runner_environ(
    planned: PlannedRunner, plan: Plan, config: Config, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a runner: the caller's, its share of the CPU cores, and its pins."""
    threads = str(_threads(planned, plan, config))
    chosen = {"OMP_NUM_THREADS": threads} if config.runners.threads else {}
    return {
        "OMP_NUM_THREADS": threads,
        # Waiting threads sleep instead of spinning. measured: a demo image, 2 threads on 2 cores that others
        # use too, 40 to 60 s with the default and 0.5 to 1.2 s so; 2-core VM, 2026-11-23
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # torch.cuda.is_available() then creates no context
        **environ,
        **chosen,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(card.uuid for card in planned.cards),
    }


def _threads(planned: PlannedRunner, plan: Plan, config: Config) -> int:
    """One thread feeds a GPU; CPU runners share the cores. `runners.threads` overrides both."""
    if config.runners.threads:
        return config.runners.threads
    on_cpu = sum(not other.cards for other in plan.runners)
    return 1 if planned.cards else max(len(os.sched_getaffinity(0)) // on_cpu, 1)
