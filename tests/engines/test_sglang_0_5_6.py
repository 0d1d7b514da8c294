"""SGLang 0.5.6's real HiCache controller with KVStoreHiCache on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import environment
from tests.engines.processes import EngineProcess, two_processes
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]

NOTHING = {"found": 0, "loaded": 0, "same": 0}


@pytest.fixture(scope="module")
def processes(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[EngineProcess]]:
    logs = tmp_path_factory.mktemp("sglang")
    with two_processes(
        environment("sglang-0.5.6"), package, "tests.engines.sglang_0_5_6_driver", logs
    ) as started:
        yield started


def open_both(
    processes: list[EngineProcess], cluster: Cluster, interface_v1: int, **config: Any
) -> tuple[EngineProcess, EngineProcess]:
    extra = {
        "backend_name": "kvstore",
        "module_path": "kvstore.integrations.sglang",
        "class_name": "KVStoreHiCache",
        "interface_v1": interface_v1,
        "master": cluster.address,
        "transport": cluster.transport,
        "timeout_ms": 1000,
    }
    for process in processes:
        process.about = process.ask("open", extra=extra, **config)
        assert process.about["backend"] == "KVStoreHiCache", process.about
    return processes[0], processes[1]


@pytest.mark.parametrize("interface_v1", [0, 1])
@pytest.mark.parametrize("layout", ["page_first", "layer_first", "page_first_direct"])
@pytest.mark.parametrize("pool", ["mha", "mla"])
def test_one_process_writes_and_another_prefetches_the_same_bytes(
    processes: list[EngineProcess], cluster: Cluster, pool: str, layout: str, interface_v1: int
) -> None:
    writer, reader = open_both(processes, cluster, interface_v1, pool=pool, layout=layout)
    assert writer.about["get"] == ("_page_get_zero_copy" if interface_v1 else "_generic_page_get")
    assert writer.ask("write", chain="a", pages=5) == {"stored": 5}
    assert writer.ask("write", chain="a", pages=2, first=5) == {"stored": 2}
    assert reader.ask("prefetch", chain="a", pages=9) == {"found": 7, "loaded": 7, "same": 7}
    assert reader.ask("prefetch", chain="b", pages=8) == NOTHING
    written, read = writer.ask("counters"), reader.ask("counters")
    assert written["bytes_written"] == read["bytes_read"] == 7 * writer.about["page_bytes"]
    assert reader.ask("stats") == {"prefetched": [7], "stored": []}
    for process in (writer, reader):
        assert process.ask("alive") == {"alive": True}


def test_a_killed_node_is_misses(processes: list[EngineProcess], cluster: Cluster) -> None:
    writer, reader = open_both(processes, cluster, 1, pool="mha")
    assert writer.ask("write", chain="a", pages=5) == {"stored": 5}
    cluster.nodes["a"].kill()
    for turn in range(5):
        answer = reader.ask("prefetch", chain="a", pages=5)
        assert answer["same"] == answer["loaded"]
        assert writer.ask("write", chain=f"lost {turn}", pages=2)["stored"] in (0, 2)
    for process in (writer, reader):
        assert process.ask("alive") == {"alive": True}
