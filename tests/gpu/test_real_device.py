"""The checks of real_device.py as tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import kvstore
from tests.gpu import real_device


@pytest.mark.gpu
@pytest.mark.parametrize("check", real_device.CHECKS, ids=lambda check: str(check.__name__))
def test_on_a_real_gpu(check: Callable[[kvstore.Store], None]) -> None:
    if reason := real_device.why_not():
        pytest.skip(reason)
    real_device.run(check)
