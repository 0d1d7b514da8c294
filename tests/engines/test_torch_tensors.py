"""PyTorch's tensors, where an engine's environment has PyTorch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.conftest import environment
from tests.support.cluster import Cluster

pytestmark = pytest.mark.engines
PROGRAM = Path(__file__).with_name("torch_tensors.py")


def test_torch_tensors_come_back(cluster: Cluster, package: Path) -> None:
    ran = subprocess.run(
        [environment("sglang"), PROGRAM, cluster.address],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.stdout.strip() == "ok", ran.stderr
