"""What holds for the whole suite: what may be skipped, what may be run again, and in which order files are handed out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# On a busy machine an example may take longer than the default of 200 ms, and drawing one, too; pytest-timeout
# still bounds every test.
hypothesis.settings.register_profile(
    "falctl", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("falctl")

HARNESSES = {"tests.process.harness", "tests.process.on_cpu", "tests.host.harness", "tests.router.harness"}
"""Modules whose users start real processes."""
SPAWNS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
FIRST = ("process", "compat", "host", "router", "demo", "benchmarks", "dashboard", "supervisor")
"""Folders with the longest files; what is short comes last, so that no core is left idle behind one long file."""

_skipped: list[str] = []
_spawned: list[str] = []
"""What the running phase of a test has started, in this process."""


def _note_spawn(event: str, arguments: tuple[Any, ...]) -> None:
    if event in SPAWNS:
        _spawned.append(f"{event} {arguments[:1]}")


sys.addaudithook(_note_spawn)


# --- what starts processes, and may be run again -------------------------------------------------


def _names_harness(namespace: Mapping[str, object]) -> bool:
    return any(getattr(value, "__module__", None) in HARNESSES for value in namespace.values())


def _uses_harness(item: pytest.Function) -> bool:
    """Return whether the module of *item*, or that of one of its fixtures, imports from a harness."""
    fixtures = (one for defs in item._fixtureinfo.name2fixturedefs.values() for one in defs)
    functions = [item.function, *(inspect.unwrap(one.func) for one in fixtures)]
    return any(_names_harness(getattr(f, "__globals__", {})) for f in functions)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts processes; only that is run again if ``--reruns`` says so, and nothing that hung."""
    reruns = config.getoption("reruns") or 0
    for item in items:
        if isinstance(item, pytest.Function) and _uses_harness(item):
            item.add_marker("process")
        again = reruns if item.get_closest_marker("process") else 0
        item.add_marker(pytest.mark.flaky(reruns=again, rerun_except=r"Timeout \("))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    folder = Path(item.path).relative_to(Path(__file__).parent).parts[0]
    return FIRST.index(folder) if folder in FIRST else len(FIRST)


def pytest_runtest_logstart() -> None:
    """Forget what was started between two tests, which is none of theirs."""
    _spawned.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """
    Fail a test that starts processes and is not marked so; make of what it printed and logged what xdist can carry.

    Only where nothing is run again: what a library starts once in a process is seen with the test that came first.
    """
    report = yield
    # Half a surrogate pair, which hostile text of a test has, would end the whole run.
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    # What a fixture of the session makes, the first that wants it would be blamed for; harnesses are marked above.
    hunting = not item.config.getoption("reruns") and not item.get_closest_marker("process")
    if hunting and _spawned and call.when == "call" and report.passed:
        report.outcome = "failed"
        report.longrepr = f"starts processes ({_spawned[0]}), so it needs the marker `process`"
    _spawned.clear()
    return report


# --- what may be skipped -------------------------------------------------------------------------


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every skip of a test that needs neither a GPU nor Node; with xdist its report has come from a worker."""
    may_be = "gpu" in report.keywords or "node" in report.keywords
    if report.skipped and not hasattr(report, "wasxfail") and not may_be:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when something was skipped that this machine could have run."""
    if _skipped and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which skips failed the run."""
    for nodeid in _skipped:
        terminalreporter.write_line(
            f"SKIPPED without marker gpu or node, which fails the suite: {nodeid}", red=True
        )
