"""`falctl replay`: the real scheduler on a virtual clock over a trace, one table or one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from falctl.cli.amounts import amount_of
from falctl.errors import EXIT_OK, ConfigError
from falctl.policy_load import Tuning, find_policy
from falctl.replay.report import Bounds, Figures, bounds, figures
from falctl.replay.trace import Job, Missing, read_trace
from falctl.replay.world import Setting, World, sizes_of

Told = Callable[[int], None]
"""Is told how many requests have arrived so far."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for, not checked yet. Times in seconds; ``vram`` as people write it: ``"48GiB"``."""

    trace: Path
    policies: str
    runners: int
    slots: int | None
    vram: str | None
    load_factor: float = 1.0
    overlap: bool = True
    seed: int = 0
    exec_s: float | None = None
    load_s: float | None = None
    ram: str | None = None
    """Of the host: a size as ``vram`` has it, or a number of models beside ``slots``."""
    ram_load: float = 0.1


def replay_command(options: Options, *, json_output: bool) -> int:
    """Replay and print to standard output; a progress bar stands on standard error if that is a terminal."""
    setting = _setting(options)
    names = list(dict.fromkeys(name.strip() for name in options.policies.split(",") if name.strip()))
    if not names:
        msg = "--policy names none; write --policy auto,fal"
        raise ConfigError(msg)
    contenders = {name: find_policy(name, cwd=Path.cwd(), tuning=Tuning(seed=options.seed)) for name in names}
    jobs = read_trace(
        options.trace,
        load_factor=options.load_factor,
        missing=Missing(exec_s=options.exec_s, load_s=options.load_s),
    )
    _check_sizes(jobs, options.trace, setting)
    found: dict[str, Figures] = {}
    for name, policy in contenders.items():
        with _progress(name, total=len(jobs)) as told:
            outcome = World(jobs, policy, setting).run(told)
        found[name] = figures(jobs, outcome, runners=setting.runners)
    least = bounds(jobs, setting)
    if json_output:
        json.dump(_document(options, setting, least, found), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        Console(highlight=False, markup=False, emoji=False).print(_table(options, setting, least, found))
    return EXIT_OK


def _setting(options: Options) -> Setting:
    if (options.slots is None) == (options.vram is None):
        msg = "give one of --slots K and --vram SIZE: how much a runner holds, in models or in bytes"
        raise ConfigError(msg)
    if not (math.isfinite(options.load_factor) and options.load_factor > 0):
        msg = f"--load-factor {options.load_factor:g}: write a number above 0"
        raise ConfigError(msg)
    for flag, seconds in (("--exec-s", options.exec_s), ("--load-s", options.load_s)):
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            msg = f"{flag} {seconds:g}: write seconds, from 0 up"
            raise ConfigError(msg)
    if not 0 <= options.ram_load <= 1:
        msg = f"--ram-load {options.ram_load:g}: write the share of a load from disk, from 0 to 1"
        raise ConfigError(msg)
    return Setting(
        options.runners,
        options.slots,
        None if options.vram is None else _bytes("--vram", options.vram),
        overlaps=options.overlap,
        ram=_ram(options),
        ram_load=options.ram_load,
    )


def _ram(options: Options) -> float:
    if options.ram is None:
        return 0.0
    if options.vram is not None:
        return float(_bytes("--ram", options.ram))
    if options.ram.isascii() and options.ram.isdecimal():
        return float(options.ram)
    msg = f"--ram {options.ram}: beside --slots, which counts models, write how many models host memory holds"
    raise ConfigError(msg)


def _bytes(flag: str, text: str) -> int:
    from falctl.config_values import parse_size

    return int(amount_of(flag, text, parse_size))


def _check_sizes(jobs: Sequence[Job], trace: Path, setting: Setting) -> None:
    if setting.vram_bytes is None:
        return
    for hint, size in sizes_of(jobs).items():
        if hint and not 0 < size <= setting.vram_bytes:
            why = (
                "has no size_bytes, which --vram needs"
                if not size
                else f"needs {size} bytes, more than --vram"
            )
            msg = f"trace {trace}: model '{hint}' {why}"
            raise ConfigError(msg)


@contextmanager
def _progress(name: str, *, total: int) -> Iterator[Told | None]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda arrived: bar.update(task, completed=arrived)


def _document(
    options: Options, setting: Setting, least: Bounds, found: dict[str, Figures]
) -> dict[str, object]:
    return {
        "trace": str(options.trace),
        "setting": {
            "runners": setting.runners,
            "slots": setting.models_max,
            "vram_bytes": setting.vram_bytes,
            "load_factor": options.load_factor,
            "overlap": setting.overlaps,
            "ram": setting.ram,
            "ram_load": setting.ram_load,
            "seed": options.seed,
        },
        "bounds": asdict(least),
        "policies": {name: asdict(figure) for name, figure in found.items()},
    }


def _table(options: Options, setting: Setting, least: Bounds, found: dict[str, Figures]) -> Table:
    holds = f"{setting.models_max} slots" if setting.vram_bytes is None else f"{options.vram}"
    loads = "" if options.load_factor == 1 else f", loads x {options.load_factor:g}"
    overlap = "" if setting.overlaps else ", no overlap"
    ram = "" if options.ram is None else f", RAM for {options.ram}{' models' if options.slots else ''}"
    table = Table(
        title=f"{options.trace.name}: {setting.runners} runners x {holds}{ram}{loads}{overlap}",
        caption="bound: loads with optimal eviction; times with free loads, first come first served",
    )
    table.add_column("", no_wrap=True)
    for name in (*found, "bound"):
        table.add_column(name, justify="right", overflow="fold")
    bound = {field.removeprefix("zero_load_").removeprefix("min_"): v for field, v in asdict(least).items()}
    for field in (f.name for f in fields(Figures)):
        if field == "ram_loads_per_1k" and not setting.ram:
            continue
        figure = [getattr(figures_, field) for figures_ in found.values()]
        table.add_row(field, *map(_number, figure), _number(bound[field]) if field in bound else "")
    return table


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
