"""A store inside the test's process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvstore


@pytest.fixture
def store() -> Iterator[kvstore.Store]:
    with kvstore.open(segment_size="64mb") as opened:
        yield opened
