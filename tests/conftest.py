"""What holds for the whole suite: nothing may be skipped but for want of a GPU, or of Node."""

from __future__ import annotations

from collections.abc import Generator

import hypothesis
import pytest

# On a busy machine an example may take longer than the default of 200 ms; pytest-timeout still bounds every test.
hypothesis.settings.register_profile("falctl", deadline=None)
hypothesis.settings.load_profile("falctl")

_skipped: list[str] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note every skip of a test that needs neither a GPU nor Node."""
    report = yield
    may_be = any(item.get_closest_marker(name) is not None for name in ("gpu", "node"))
    if report.skipped and not hasattr(report, "wasxfail") and not may_be:
        _skipped.append(item.nodeid)
    return report


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
