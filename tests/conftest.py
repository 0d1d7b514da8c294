"""Fixtures: real clusters that end with the test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Under nohup, and behind a shell's &: the processes that tests start would ignore Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--console", action="store_true", help="run what is marked console, too")
    parser.addoption("--deploy", action="store_true", help="run what is marked deploy, too")
    parser.addoption("--engines", action="store_true", help="run what is marked engines, too")
    parser.addoption("--rdma", action="store_true", help="what is marked rdma must not be skipped")
    parser.addoption("--gpu", action="store_true", help="run what is marked gpu, and not its fake")
    parser.addoption(
        "--attack-rounds", type=int, default=1, help="how often each test of tests/attack runs"
    )
    parser.addoption(
        "--transport",
        choices=("auto", "tcp", "ucx"),
        default="auto",
        help="by which the engines of tests/engines reach their nodes",
    )
    parser.addoption(
        "--fault-cycles", type=int, default=1, help="how often each fault of tests/fault is made"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what must have the machine to itself."""
    for item in items:
        if item.path.parent.name in ("attack", "fault"):
            item.add_marker("alone")


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A master without nodes; tests start the nodes they need.

    In a test with a parameter "transport" its nodes offer that one.
    """
    callspec = getattr(request.node, "callspec", None)
    transport = callspec.params.get("transport", "auto") if callspec is not None else "auto"
    running = Cluster(tmp_path, transport=transport)
    try:
        yield running
    finally:
        running.close()
