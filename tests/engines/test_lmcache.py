"""LMCache's own remote backend over the plug-in: one process writes chunks, another reads them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.conftest import environment
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.engines, pytest.mark.cluster, pytest.mark.timeout(600)]

DRIVER = Path(__file__).with_name("lmcache_driver.py")
PLUGIN = "remote_storage_plugin.kvstore."


def drive(mode: str, package: Path, cluster: Cluster, save_chunk_meta: bool) -> None:
    extra = {
        PLUGIN + "module_path": "kvstore.integrations.lmcache",
        PLUGIN + "class_name": "KVStoreAdapter",
        PLUGIN + "master": cluster.address,
        PLUGIN + "transport": cluster.transport,
        PLUGIN + "timeout_ms": 10_000,
        "save_chunk_meta": save_chunk_meta,
    }
    ran = subprocess.run(
        [environment("vllm"), str(DRIVER), mode, json.dumps(extra)],
        env={**os.environ, "PYTHONPATH": str(package), "LMCACHE_TRACK_USAGE": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = f"{ran.stdout[-4000:]}\n{ran.stderr[-8000:]}"
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "ok", said


def test_chunks_come_back_in_another_process(package: Path, cluster: Cluster) -> None:
    for save_chunk_meta in (True, False):
        drive("absent", package, cluster, save_chunk_meta)
        drive("write", package, cluster, save_chunk_meta)
        drive("read", package, cluster, save_chunk_meta)


def test_without_a_store_everything_is_a_miss(package: Path, cluster: Cluster) -> None:
    cluster.close()
    drive("absent", package, cluster, True)
