"""Tests on RDMA devices: in the virtual machine of make test-rdma, where no test may be skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.rdma.fabric import INFINIBAND, SIDES, Side
from tests.support.processes import SCALE

NO_DEVICES = "there are no RDMA devices rxe0 and rxe1: make test-rdma"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    there = all((INFINIBAND / side.device).exists() for side in SIDES.values())
    limit_s = float(config.getini("timeout")) * SCALE
    for item in items:
        if not item.get_closest_marker("rdma"):
            continue
        if there:
            item.add_marker(pytest.mark.timeout(limit_s))
        else:
            item.add_marker(pytest.mark.skip(reason=NO_DEVICES))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With --rdma, a skipped test has failed: nobody would see that nothing is tested any more."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    expected_to_fail = hasattr(report, "wasxfail")  # is reported as skipped, too
    if report.skipped and not expected_to_fail and item.config.getoption("--rdma"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"with --rdma no test may be skipped: {reason}"


@pytest.fixture
def fabric_sides() -> Iterator[Mapping[str, Side]]:
    """The sides "node" (rxe0, 10.77.0.1) and "client" (rxe1, 10.77.0.2); their links end up."""
    yield SIDES
    for side in SIDES.values():
        if not side.is_active():
            side.set_link(up=True)
