"""
Tunes and judges `auto`: every goal, on copies of the traces with jittered arrivals, beside `fal` in the same run.

    python -m benchmarks.routing_study --traces DIR [--jitters 3] [--seeds 30] [--set price=40 ...] [--json FILE]

One line per trace and setting. The traces are GenTD26 (see docs) and zipf30; DIR holds them. Nothing is written
but FILE.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean

from benchmarks._workloads import workload
from falctl.core.costs import Costs
from falctl.core.policies import Fal
from falctl.core.policies.auto import Auto
from falctl.core.policies.base import Policy
from falctl.core.policies.knobs import Knobs
from falctl.core.sources import Source
from falctl.core.types import GiB, Hint
from falctl.replay.report import Figures, figures
from falctl.replay.trace import Job, Missing, read_trace
from falctl.replay.world import Setting, World

JITTER_S = 3.0
WRONG = 4.0
"""By how much estimates of loads are wrong, either way."""


@dataclass(frozen=True, slots=True)
class Case:
    """A trace, a fleet, and what is asked of it in words."""

    name: str
    trace: str
    setting: Setting
    goal: str
    load_factor: float = 1.0
    squeeze: float = 1.0
    """Arrivals come in this share of the time: below 1 it is an overload."""
    wrong_by: float = 1.0


CASES = (
    Case("n4_u35", "gentd26_public_n4_u35.csv.gz", Setting(4), "100 / 11.8, p99 88, slo 84"),
    Case("n4_u35 no overlap", "gentd26_public_n4_u35.csv.gz", Setting(4, overlaps=False), "100 / 14.5"),
    Case("n4_u20", "gentd26_public_n4_u20.csv.gz", Setting(4), "93 / 6.9"),
    Case("n8_u35", "gentd26_public_n8_u35.csv.gz", Setting(8), "53 / 9.4"),
    Case(
        "loads x0.1",
        "gentd26_public_n4_u35.csv.gz",
        Setting(4),
        "fal's mean / 1.4, p99 / 1.8, loads x 1.1",
        0.1,
    ),
    Case(
        "48 GiB",
        "gentd26_public_n4_u35.csv.gz",
        Setting(4, models_max=None, vram_bytes=48 * GiB),
        "60 / 11.2",
    ),
    Case("hints only", "gentd26_public_n4_u35.csv.gz", Setting(4, loads=False), "loads of n4_u35 x 1.25"),
    Case(
        "slowed 20 %",
        "gentd26_public_n4_u35.csv.gz",
        Setting(4, overlap_slowdown=0.2),
        "mean of n4_u35 x 1.2",
    ),
    Case(
        "costs wrong x4", "gentd26_public_n4_u35.csv.gz", Setting(4), "mean of n4_u35 x 1.15", wrong_by=WRONG
    ),
    Case("overload u1", "gentd26_public_n4_u50.csv.gz", Setting(4), "no thrash", squeeze=0.5),
    Case("zipf30 20 rps", "zipf30_20rps.jsonl", Setting(4), "438 / 0.25"),
    Case("zipf30 60 rps", "zipf30_60rps.jsonl", Setting(4), "mean 1.0"),
)


class WrongCosts(Costs):
    """Takes every load for four times, or a quarter, of what it is, for ever."""

    def load_s(self, hint: Hint, source: Source = "disk") -> float:
        return super().load_s(hint, source) * (WRONG if sum(hint.encode()) % 2 else 1 / WRONG)


def jittered(jobs: list[Job], seed: int) -> list[Job]:
    """Return *jobs* with each arrival moved by up to 3 s; seed 0: as they are."""
    if not seed:
        return jobs
    rng = Random(seed)
    moved = [replace(job, t_s=job.t_s + rng.uniform(-JITTER_S, JITTER_S)) for job in jobs]
    return sorted(moved, key=lambda job: job.t_s)


def play(jobs: list[Job], policy: Policy, setting: Setting, *, wrong: bool = False) -> Figures:
    """Return the figures of one run of the real scheduler on a virtual clock."""
    world = World(jobs, policy, setting)
    if wrong:
        world.scheduler.state.costs = WrongCosts()
    return figures(jobs, world.run(), runners=setting.runners)


def mean_of(runs: list[Figures]) -> dict[str, float]:
    """Return the mean of every figure, and the range of loads and mean latency."""
    table = {name: fmean(asdict(run)[name] for run in runs) for name in asdict(runs[0])}
    for name in ("loads_per_1k", "mean_s"):
        values = [asdict(run)[name] for run in runs]
        table[f"{name}_least"], table[f"{name}_most"] = min(values), max(values)
    return table


def study(traces: Path, case: Case, make: Callable[[], Policy], jitters: int) -> dict[str, object]:
    """Return one line: the trace itself, the mean over its jittered copies, and `fal` on the trace."""
    missing = Missing(exec_s=0.04, load_s=0.4)
    jobs = read_trace(traces / case.trace, load_factor=case.load_factor, missing=missing)
    jobs = [replace(job, t_s=job.t_s * case.squeeze) for job in jobs]
    wrong = case.wrong_by != 1.0
    plain = play(jobs, make(), case.setting, wrong=wrong)
    copies = range(1, jitters + 1) if case.trace.startswith("gentd26") else ()
    runs = [play(jittered(jobs, seed), make(), case.setting, wrong=wrong) for seed in copies]
    fal = play(jobs, Fal(), replace(case.setting, loads=True))
    return {
        "case": case.name,
        "goal": case.goal,
        "trace": asdict(plain),
        "jittered": mean_of(runs or [plain]),
        "fal": asdict(fal),
    }


def synthetic(seeds: int, make: Callable[[], Policy]) -> Iterator[dict[str, object]]:
    """Compare with `fal` on generated workloads; the ratio that the goal bounds is that of the means."""
    for seed in range(seeds):
        jobs, shape = workload(seed)
        auto = play(jobs, make(), Setting(shape.runners))
        fals = [play(_tied(jobs, tie), Fal(), Setting(shape.runners)) for tie in range(5)]
        fal_s, fal_loads = fmean(f.mean_s for f in fals), fmean(f.loads_per_1k for f in fals)
        yield {
            "seed": seed,
            "shape": asdict(shape),
            "mean_s": auto.mean_s,
            "loads_per_1k": auto.loads_per_1k,
            "fal_mean_s": fal_s,
            "fal_loads_per_1k": fal_loads,
            "ratio": auto.mean_s / fal_s,
            "met": auto.mean_s <= max(1.03 * fal_s, fal_s + 0.02),
        }


def _tied(jobs: list[Job], tie: int) -> list[Job]:
    """Return *jobs* behind *tie* requests that turn the round robin, since `fal` has no other dice."""
    first = jobs[0]
    return [replace(first, t_s=first.t_s - 1e4 * (tie - n)) for n in range(tie)] + jobs


def say(line: dict[str, object]) -> None:
    """Print one line of the study."""
    trace, mean, fal = line["trace"], line["jittered"], line["fal"]
    assert isinstance(trace, dict)
    assert isinstance(mean, dict)
    assert isinstance(fal, dict)
    print(
        f"{line['case']:18} {trace['loads_per_1k']:6.1f} /{trace['mean_s']:7.2f}   jittered "
        f"{mean['loads_per_1k']:6.1f} /{mean['mean_s']:7.2f}"
        f" [{mean['loads_per_1k_least']:.1f}-{mean['loads_per_1k_most']:.1f} /"
        f" {mean['mean_s_least']:.2f}-{mean['mean_s_most']:.2f}]"
        f"  p99 {mean['p99_s']:6.1f} slo {mean['slo_pct']:5.1f} bypass {mean['max_bypass_s']:5.0f}"
        f"   fal {fal['loads_per_1k']:.0f} / {fal['mean_s']:.2f}, p99 {fal['p99_s']:.0f}"
        f"   goal {line['goal']}",
        flush=True,
    )


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--jitters", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    knobs = Knobs(**{name: float(value) for name, value in (pair.split("=") for pair in args.set)})
    lines = []
    for case in CASES:
        if args.only in case.name:
            lines.append(study(args.traces, case, lambda: Auto(knobs), args.jitters))
            say(lines[-1])
    worst = []
    for line in synthetic(args.seeds, lambda: Auto(knobs)):
        worst.append(line)
        print(
            f"seed {line['seed']:3} ratio {line['ratio']:.3f} {'' if line['met'] else 'WORSE THAN fal'}",
            flush=True,
        )
    if args.json is not None:
        args.json.write_text(
            json.dumps({"knobs": asdict(knobs), "cases": lines, "synthetic": worst}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
