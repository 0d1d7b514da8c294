"""How often each fault is made, and the table at the end."""

from __future__ import annotations

import pytest

from tests.fault import report


@pytest.fixture
def cycles(request: pytest.FixtureRequest) -> int:
    """How often to make the fault: --fault-cycles."""
    return int(request.config.getoption("--fault-cycles"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if report.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(report.table())
