"""
`auto` against fal's rule, the rules of peers and the best prototype, on the virtual clock over recorded traces.

The traces are read from ``--traces DIR`` or ``$FALCTL_TRACES``; they are not part of this repository.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Final

from benchmarks._report import Table, arguments, publish
from benchmarks.peers import Mect, MectLru, ModelMesh, RayServe, SwarmUI, Tideline
from falctl.core.policies import Auto, Fal, LeastLoaded, Policy
from falctl.core.policies import Random as RandomRunner
from falctl.core.sizes import size_text
from falctl.core.types import GiB
from falctl.errors import ConfigError
from falctl.policy_load import find_policy
from falctl.replay.report import Figures, bounds, figures
from falctl.replay.trace import Job, Missing, read_trace
from falctl.replay.world import Setting, World

Maker = Callable[[], Policy]

RUNNERS: Final[Mapping[str, int]] = {"n4_u35": 4, "n4_u20": 4, "n4_u50": 4, "n8_u35": 8, "n2_u20": 2}
"""GenTD26 traces: made for so many runners, whose executions alone use so many percent of them."""

OWN: Final[dict[str, Maker]] = {"auto": Auto, "affinity": partial(find_policy, "affinity", cwd=Path())}
"""With the limits that a configuration has by default."""
PEERS: Final[dict[str, Maker]] = {
    "fal": Fal,
    "Ray Serve, max_ongoing 5": RayServe,
    "ModelMesh": ModelMesh,
    "MECT, LRU": MectLru,
    "MECT, copy-aware": Mect,
    "SwarmUI, 3 slots": SwarmUI,
    "Tideline (peeks)": Tideline,
}
BLIND: Final[dict[str, Maker]] = {"random": RandomRunner, "least-loaded": LeastLoaded}

FIRST_FIGURES: Final[Mapping[str, tuple[float, float]]] = {
    "fal": (492, 174),
    "Ray Serve, max_ongoing 5": (352, 128),
    "ModelMesh": (196, 47),
    "MECT, LRU": (241, 48),
    "MECT, copy-aware": (203, 33),
    "SwarmUI, 3 slots": (227, 19.8),
    "Tideline (peeks)": (103.0, 12.12),
    "Tideline (peeks), no overlap": (100.1, 14.86),
}
"""Loads per 1,000 and mean seconds on n4_u35 that the rules gave in the simulators they were first written for."""

UNTOLD: Final = "tiers not told"
RAM_PEERS: Final[dict[str, Maker]] = {
    name: maker for name, maker in PEERS.items() if maker in (Fal, RayServe, ModelMesh, SwarmUI)
} | {"least-loaded": LeastLoaded}
"""The rules that somebody ships: none of them knows of tiers."""
RAM_METRICS: Final = (
    "loads/1k",
    "from RAM/1k#",
    "mean s",
    "load s/request#",
    "p50 s#",
    "p95 s#",
    "p99 s#",
    "SLO %#",
)
RAM_SIZES: Final = (6, 12, 24, 48)
"""Models that host memory holds; the cards of n4_u35 hold 12 together, and its trace names 76."""

COPIES: Final = 7
JITTER_S: Final = 3.0
"""Each arrival of a jittered copy is moved by up to this much either way."""

METRICS: Final = (
    "loads/1k",
    "mean s",
    "load s/request#",
    "p50 s#",
    "p95 s#",
    "p99 s#",
    "max s#",
    "SLO %#",
    "max bypass s#",
)
NOTES: Final = (
    "SLO: latency <= 3 x execution + 5 s. Bypass: start of the execution less what first come, first served with "
    "free loads would give. Bound: loads of MIN (bytes: PFOO-L) on one cache of all slots, which holds for whoever "
    "serves in order of arrival; times with free loads, first come, first served.",
)


RAM_NOTES: Final = (
    "Host memory is one for all runners; what has been loaded from disk is in it until others need the room. Tiers not "
    "told: loads from it are as fast, but the scheduler knows neither what is there nor where a load came from.",
)


def main() -> int:
    """Replay everything; some minutes."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--traces", type=Path, metavar="DIR", default=os.environ.get("FALCTL_TRACES"))
    options = parser.parse_args()
    if options.traces is None:
        parser.error("where are the traces? give --traces DIR or set FALCTL_TRACES")
    try:
        tables = _tables(Path(options.traces))
    except ConfigError as error:
        sys.stderr.write(f"benchmarks.replay: {error}\n")
        return error.exit_code
    trace = "GenTD26 (alibaba/clusterdata, Lin et al., SoCC '25), public half, 13,411 requests"
    publish("Replay", tables, json_path=options.json, facts={"trace": trace})
    return 0


def _tables(folder: Path) -> list[Table]:
    tables = []
    for name, runners in RUNNERS.items():
        setting = Setting(runners, models_max=3)
        makers = OWN | PEERS | (BLIND if name == "n4_u35" else {})
        title = f"{name}: {runners} runners x 3 slots"
        tables.append(_compared(title, _gentd(folder, name), setting, makers, both=True))
    bytes_each = Setting(4, models_max=None, vram_bytes=48 * GiB)
    tables.append(
        _compared("n4_u35: 4 runners x 48 GiB", _gentd(folder, "n4_u35"), bytes_each, OWN | PEERS, both=True)
    )
    for factor in (0.33, 0.1):
        title = f"n4_u35: 4 runners x 3 slots, loads x {factor}"
        jobs = _gentd(folder, "n4_u35", load_factor=factor)
        tables.append(_compared(title, jobs, Setting(4, models_max=3), OWN | PEERS, both=True))
    for rate in (20, 60):
        jobs = _zipf(folder, rate)
        title = f"zipf30, {rate} requests/s: 4 runners x 3 slots, load 0.4 s, execution 0.04 s"
        tables.append(_compared(title, jobs, Setting(4, models_max=3), OWN | PEERS))
    first, *others = _with_ram(folder)
    tables += [replace(first, notes=RAM_NOTES), *others]
    tables.append(_against_first(tables[0]))
    tables += [_jittered(folder, name) for name in ("n4_u35", "n4_u20", "n8_u35")]
    return [replace(tables[0], notes=NOTES), *tables[1:]]


def _with_ram(folder: Path) -> Iterator[Table]:
    """Replay fleets with host memory: what has been loaded once comes back at a share of its load from disk."""
    n4_u35 = _gentd(folder, "n4_u35")
    for models in RAM_SIZES:
        yield _tiered("n4_u35: 4 runners x 3 slots", n4_u35, Setting(4, ram=models))
    yield _tiered("n4_u35: 4 runners x 3 slots", n4_u35, Setting(4, ram=24, ram_load=0.3))
    for name in ("n4_u20", "n8_u35"):
        runners = RUNNERS[name]
        yield _tiered(f"{name}: {runners} runners x 3 slots", _gentd(folder, name), Setting(runners, ram=24))
    for size in (64, 128):
        setting = Setting(4, models_max=None, vram_bytes=48 * GiB, ram=size * GiB)
        yield _tiered("n4_u35: 4 runners x 48 GiB", n4_u35, setting)
    yield _tiered("zipf30, 20 requests/s: 4 runners x 3 slots", _zipf(folder, 20), Setting(4, ram=12))
    yield _tiered("zipf30, 60 requests/s: 4 runners x 3 slots", _zipf(folder, 60), Setting(4, ram=12))


def _tiered(title: str, jobs: list[Job], setting: Setting) -> Table:
    """Compare all policies on one fleet with host memory, and `auto` and `affinity` also where nobody tells of tiers."""
    holds = f"{setting.ram:g} models" if setting.vram_bytes is None else size_text(setting.ram)
    title = f"{title}, RAM for {holds}, a load from it {setting.ram_load:g} of one from disk"
    sys.stderr.write(f"{title}\n")
    rows = {}
    for name, maker in (OWN | RAM_PEERS).items():
        rows[name] = _row(_replay(jobs, maker, setting))
        if name in OWN:
            rows[f"{name}, {UNTOLD}"] = _row(_replay(jobs, maker, replace(setting, tells_tiers=False)))
    return Table(title, RAM_METRICS, rows, baseline="fal")


def _against_first(here: Table) -> Table:
    """Compare the baselines with what they gave without our scheduler: the check of the simulated fleet."""
    rows = {}
    for name, (loads, mean_s) in FIRST_FIGURES.items():
        row = here.rows[name]
        rows[name] = {
            "loads/1k#": row["loads/1k"],
            "first loads/1k#": loads,
            "mean s#": row["mean s"],
            "first mean s#": mean_s,
        }
    notes = (
        "fal's ties are by turns here, and were drawn at random; Ray Serve's draws differ (5 seeds here: 346 to 361 "
        "loads, 131 to 141 s); SwarmUI sees the end of its 1.5 s up to 0.1 s late. The others are to the digit.",
    )
    title = "n4_u35: the baselines here, and in the simulators they were first written for"
    metrics = ("loads/1k#", "first loads/1k#", "mean s#", "first mean s#")
    return Table(title, metrics, rows, baseline="fal", notes=notes)


def _gentd(folder: Path, name: str, *, load_factor: float = 1.0) -> list[Job]:
    return read_trace(folder / f"gentd26_public_{name}.csv.gz", load_factor=load_factor)


def _zipf(folder: Path, rate: int) -> list[Job]:
    return read_trace(folder / f"zipf30_{rate}rps.jsonl", missing=Missing(exec_s=0.04, load_s=0.4))


def _compared(
    title: str, jobs: list[Job], setting: Setting, makers: Mapping[str, Maker], *, both: bool = False
) -> Table:
    """Replay *jobs* by every policy; *both*: those that overlap loads with executions also without."""
    sys.stderr.write(f"{title}\n")
    rows = {}
    for name, maker in makers.items():
        rows[name] = _row(_replay(jobs, maker, setting))
        if both and maker in (Auto, Tideline):
            serial = _replay(jobs, maker, replace(setting, overlaps=False))
            rows[f"{name}, no overlap"] = _row(serial)
    least = bounds(jobs, setting)
    rows["bound"] = {
        "loads/1k": least.min_loads_per_1k,
        "mean s": least.zero_load_mean_s,
        "p50 s#": least.zero_load_p50_s,
        "p95 s#": least.zero_load_p95_s,
        "p99 s#": least.zero_load_p99_s,
        "max s#": least.zero_load_max_s,
        "SLO %#": least.zero_load_slo_pct,
    }
    return Table(title, METRICS, rows, baseline="fal")


def _replay(jobs: list[Job], maker: Maker, setting: Setting) -> Figures:
    return figures(jobs, World(jobs, maker(), setting).run(), runners=setting.runners)


def _row(found: Figures) -> dict[str, float]:
    return {
        "loads/1k": found.loads_per_1k,
        "from RAM/1k#": found.ram_loads_per_1k,
        "mean s": found.mean_s,
        "load s/request#": found.load_s_per_request,
        "p50 s#": found.p50_s,
        "p95 s#": found.p95_s,
        "p99 s#": found.p99_s,
        "max s#": found.max_s,
        "SLO %#": found.slo_pct,
        "max bypass s#": found.max_bypass_s,
    }


_SPREAD: Final[dict[str, Callable[[Iterable[float]], float]]] = {"least": min, "mean": fmean, "most": max}


def _jittered(folder: Path, name: str) -> Table:
    """Replay a trace and copies of it whose arrivals are moved a little: differences below that range mean nothing."""
    sys.stderr.write(f"{name}, jittered\n")
    jobs = _gentd(folder, name)
    copies = [jobs, *(_moved(jobs, seed) for seed in range(1, COPIES + 1))]
    setting = Setting(RUNNERS[name], models_max=3)
    rows = {}
    for label, maker in {"Tideline (peeks)": Tideline, "auto": Auto}.items():
        found = [_replay(copy, maker, setting) for copy in copies]
        for title, choose in _SPREAD.items():
            rows[f"{label}, {title}"] = {
                "loads/1k": choose(f.loads_per_1k for f in found),
                "mean s": choose(f.mean_s for f in found),
                "p99 s#": choose(f.p99_s for f in found),
                "SLO %#": choose(f.slo_pct for f in found),
            }
    title = f"{name} and {COPIES} copies with every arrival moved by up to {JITTER_S:g} s either way"
    return Table(title, ("loads/1k", "mean s", "p99 s#", "SLO %#"), rows, baseline="Tideline (peeks), mean")


def _moved(jobs: list[Job], seed: int) -> list[Job]:
    rng = Random(seed)
    moved = (replace(job, t_s=job.t_s + rng.uniform(-JITTER_S, JITTER_S)) for job in jobs)
    return sorted(moved, key=lambda job: job.t_s)


if __name__ == "__main__":
    sys.exit(main())
