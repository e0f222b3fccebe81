"""
All that only a machine with a CUDA card can tell, the most important first: the tests of tests/gpu, then the benchmarks.

    python -m benchmarks.on_card [--out DIR] [--within 540] [--only NAME ...]      (or `make gpu`)

Each part is a process with a limit of its own; one that fails or hangs is told of, and the next one runs. What each part
printed is in DIR/on_card.log, whole; its end is printed here, and the verdicts come last. Figures are in DIR/*.json.
The packages of the extra `test` are needed, and nothing else: no network, no root.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from falctl.clock import monotonic_s

WITHIN_S: Final = 540.0
LEAST_S: Final = 20.0
"""A part that would have less is left out."""
END_S: Final = 20.0
"""From Ctrl-C to SIGKILL: tests end the processes that they have started."""
TOLD_LINES: Final = 25
REPOSITORY: Final = Path(__file__).parents[1]

_FACTS: Final = """
nvidia-smi
nvidia-smi -q -d PCI,MEMORY,ECC | head -60
python3 -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_properties(0))'
uname -a; nproc; free -m; df -h /tmp . ; ulimit -l
cat /sys/kernel/mm/transparent_hugepage/enabled /sys/kernel/mm/transparent_hugepage/shmem_enabled
"""
_PYTEST: Final = ("-m", "pytest", "-q", "-rA", "-p", "pytest_timeout", "-p", "pytest_rerunfailures")
_ENVIRON: Final[Mapping[str, str]] = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TESTS_NEED_A_CARD": "1",  # tests/gpu/card.py
    # What else may be installed there is no business of these tests.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One process. *limit_s*: when it is ended."""

    name: str
    command: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a part. *code* None: it was not run, or ended at its limit."""

    name: str
    code: int | None
    spent_s: float
    why: str = ""

    def __str__(self) -> str:
        how = self.why or ("ok" if self.code == 0 else f"FAILED with exit code {self.code}")
        return f"{self.name:12} {self.spent_s:6.1f} s  {how}"


def parts_into(out: Path) -> tuple[Part, ...]:
    """Return all parts, the most important first; those that have figures write them into *out*."""
    python = sys.executable
    test = (python, *_PYTEST)

    def swap(name: str, rounds: int, *pipelines: str) -> tuple[str, ...]:
        json = str(out / f"{name}.json")
        return (
            python,
            "-m",
            "benchmarks.swap",
            "--rounds",
            str(rounds),
            "--json",
            json,
            "--only",
            *pipelines,
        )

    return (
        Part("facts", ("sh", "-c", _FACTS), 40.0),
        Part("bus", (python, "-m", "benchmarks.bus", "--json", str(out / "bus.json")), 60.0),
        Part("weights", (*test, "tests/gpu/test_weights_on_a_card.py"), 240.0),
        Part("swap-large", swap("swap-large", 3, "sdxl-7GB"), 330.0),
        Part("fleet", (*test, "tests/gpu/test_fleet_on_a_card.py"), 270.0),
        Part("swap", swap("swap", 5, "sd15", "sdxl", "sd3", "flux"), 240.0),
    )


def run_all(
    parts: Sequence[Part],
    log: TextIO,
    *,
    within_s: float,
    tell: Callable[[str], None],
    least_s: float = LEAST_S,
) -> list[Verdict]:
    """Run *parts* one after the other, *within_s* seconds in all; return what became of each."""
    end_at = monotonic_s() + within_s
    verdicts: list[Verdict] = []
    for part in parts:
        left_s = end_at - monotonic_s()
        if left_s < least_s:
            verdicts.append(Verdict(part.name, None, 0.0, "not run: no time is left"))
            continue
        tell(f"\n===== {part.name}: {' '.join(part.command)[:200]}")
        verdicts.append(_run(part, log, limit_s=min(part.limit_s, left_s), tell=tell))
        tell(f"----- {verdicts[-1]}")
    return verdicts


def _run(part: Part, log: TextIO, *, limit_s: float, tell: Callable[[str], None]) -> Verdict:
    log.write(f"\n===== {part.name}\n")
    log.flush()
    printed_from = log.tell()
    began_at = monotonic_s()
    environ = {**os.environ, **_ENVIRON, "PYTHONPATH": _python_path()}
    process = subprocess.Popen(
        part.command,
        cwd=REPOSITORY,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    code: int | None
    try:
        code, why = process.wait(limit_s), ""
    except subprocess.TimeoutExpired:
        code, why = None, f"ENDED after its limit of {limit_s:.0f} s"
        _end(process)
    spent_s = monotonic_s() - began_at
    log.flush()
    with Path(log.name).open(encoding="utf-8", errors="replace") as printed:
        printed.seek(printed_from)
        for line in printed.read().splitlines()[-TOLD_LINES:]:
            tell(line[:400])
    log.seek(0, os.SEEK_END)
    return Verdict(part.name, code, spent_s, why)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))


def main() -> int:
    """Run all of it; 0 if every part was run and succeeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--out", type=Path, default=Path("on_card"), help="for the log and the figures")
    parser.add_argument("--within", type=float, default=WITHIN_S, metavar="SECONDS")
    names = [part.name for part in parts_into(Path())]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=", ".join(names))
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = [part for part in parts_into(out) if not options.only or part.name in options.only]
    with (out / "on_card.log").open("a", encoding="utf-8") as log:
        verdicts = run_all(parts, log, within_s=options.within, tell=lambda line: print(line, flush=True))
        told = "\n".join(map(str, verdicts))
        log.write(f"\n===== verdicts\n{told}\n")
    print(f"\n===== verdicts ({out / 'on_card.log'} has all of it)\n{told}")
    return int(any(verdict.code != 0 for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
