"""What is going to run: the runners, the cards of each, and the environment that pins it to them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from falctl.config import Config
from falctl.core.cards import Card, assign, visible
from falctl.core.types import RunnerId
from falctl.supervisor.nvml import Machine


@dataclass(frozen=True, slots=True)
class PlannedRunner:
    """A runner-to-be. ``gpu_rows`` are its rows on the board: of its cards, or its own for a CPU runner."""

    runner: RunnerId
    cards: tuple[Card, ...]
    gpu_rows: tuple[int, ...]

    @property
    def name(self) -> str:
        """Return what it is called in output: ``cpu1``, or ``gpu0``, ``gpu0+1`` and its number behind a dot."""
        where = "+".join(str(card.index) for card in self.cards)
        return f"gpu{where}.{self.runner}" if where else f"cpu{self.runner}"


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


def make_plan(config: Config, machine: Machine | None, environ: Mapping[str, str]) -> Plan:
    """
    Return what to start on *machine* (None: no NVIDIA driver) for a caller with this *environ*.

    Raises:
        ConfigError: `runners.gpus` names a card that cannot be used.
    """
    runners = config.runners
    cards = visible(machine.cards, environ.get("CUDA_VISIBLE_DEVICES")) if machine else ()
    groups = assign(runners.gpus, cards, count=runners.count)
    if not groups:
        count = runners.count or runners.cpu_count
        cpu = tuple(PlannedRunner(RunnerId(i), (), (i,)) for i in range(count))
        return Plan(cpu, (None,) * count, "")
    rows = list(dict.fromkeys(card for group in groups for card in group))
    planned = tuple(
        PlannedRunner(RunnerId(i), group, tuple(rows.index(card) for card in group))
        for i, group in enumerate(groups)
    )
    return Plan(planned, tuple(rows), machine.driver if machine else "")


def runner_environ(
    planned: PlannedRunner, plan: Plan, config: Config, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment of a runner: the caller's, its share of the CPU cores, and its pins."""
    threads = str(_threads(plan, config))
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


def _threads(plan: Plan, config: Config) -> int:
    """One thread feeds a GPU; CPU runners share the cores. `runners.threads` overrides both."""
    if config.runners.threads:
        return config.runners.threads
    return max(len(os.sched_getaffinity(0)) // len(plan.runners), 1) if plan.on_cpu else 1
