"""Prometheus itself, as Debian packages it: `make promtool` unpacks it into build/prometheus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.documents import ROOT

_UNPACKED = ROOT / "build/prometheus/usr/bin"


def program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; skip the test where there is none."""
    unpacked = _UNPACKED / name
    found = str(unpacked) if unpacked.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (`make promtool` gets it on Debian)")
    return str(Path(found))


def promtool() -> str:
    return program("promtool")
