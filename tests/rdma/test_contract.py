"""The suite of the Python API over verbs, the node and its clients on devices of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rdma.fabric import CLIENT, NODE, Side, sent_by
from tests.support.suite import run_by_ucx
from tests.support.transports import TRAFFIC_VARIABLE

pytestmark = [pytest.mark.rdma, pytest.mark.cluster]


def test_the_suite_passes_and_its_bytes_go_by_rdma(
    fabric_sides: Mapping[str, Side], tmp_path: Path
) -> None:
    traffic = tmp_path / "traffic"
    environment = {
        **os.environ,
        "KVSTORE_TEST_UCX_NODE": json.dumps(NODE.environment),
        "KVSTORE_TEST_UCX_CLIENT": json.dumps(CLIENT.environment),
        TRAFFIC_VARIABLE: str(traffic),
    }
    with sent_by(fabric_sides["client"]) as put, sent_by(fabric_sides["node"]) as got:
        assert run_by_ucx(["tests/contract"], environment) > 70
    rows = [json.loads(line) for line in traffic.read_text().splitlines()]
    moved = {name: sum(row[name] for row in rows) for name in rows[0]}
    print(moved, put, got)
    put.assert_by_rdma(moved["put_bytes_ucx"])
    got.assert_by_rdma(moved["bytes_ucx"])
