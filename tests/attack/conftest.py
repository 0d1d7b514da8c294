"""How often each attack is made, and the table of floods at the end."""

from __future__ import annotations

import pytest

from tests.attack import neighbours


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rounds = int(metafunc.config.getoption("--attack-rounds"))
    if rounds > 1:
        metafunc.fixturenames.append("attack_round")
        metafunc.parametrize("attack_round", range(rounds))


def pytest_sessionfinish(session: pytest.Session) -> None:
    rounds = int(session.config.getoption("--attack-rounds"))
    if rounds > 1 and neighbours.unfair() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if neighbours.measured:
        terminalreporter.section("floods")
        terminalreporter.write_line(neighbours.table())
