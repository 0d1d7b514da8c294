"""Tests of deploy/. Those marked `deploy` take minutes: they run with --deploy only."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--deploy"):
        return
    later = pytest.mark.skip(
        reason="builds an image or wheels, which takes minutes: make test-deploy"
    )
    for item in items:
        if item.get_closest_marker("deploy"):
            item.add_marker(later)
