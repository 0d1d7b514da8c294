"""SGLang's real HiCache controller with KVStoreHiCache on a real cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import environment
from tests.engines.processes import EngineProcess
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]

Start = Callable[..., EngineProcess]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        cluster.start_node("a")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def start(cluster: Cluster, package: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts an engine of SGLang on the cluster; all are ended with the test."""
    python = environment("sglang")
    engines: list[EngineProcess] = []

    def start(
        pool: str = "mha",
        layout: str = "page_first",
        interface_v1: int = 1,
        extra: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        **config: Any,
    ) -> EngineProcess:
        own = {
            "backend_name": "kvstore",
            "module_path": "kvstore.integrations.sglang",
            "class_name": "KVStoreHiCache",
            "interface_v1": interface_v1,
            "master": cluster.address,
            **(extra or {}),
        }
        config = {"pool": pool, "layout": layout, "extra": own, **config}
        engine = EngineProcess(
            python,
            package,
            ["-m", "tests.engines.sglang_driver", json_of(config)],
            tmp_path / f"engine-{len(engines)}.log",
            environ,
        )
        engines.append(engine)
        return engine

    try:
        yield start
    finally:
        for engine in engines:
            engine.kill()


def json_of(value: Any) -> str:
    import json

    return json.dumps(value)


@pytest.mark.parametrize("interface_v1", [0, 1])
@pytest.mark.parametrize("layout", ["page_first", "layer_first", "page_first_direct"])
@pytest.mark.parametrize("pool", ["mha", "mla"])
def test_one_process_writes_and_another_prefetches_the_same_bytes(
    start: Start, pool: str, layout: str, interface_v1: int
) -> None:
    writer = start(pool, layout, interface_v1)
    reader = start(pool, layout, interface_v1)
    zero_copy = "_page_get_zero_copy" if interface_v1 else "_generic_page_get"
    assert writer.about["backend"] == "KVStoreHiCache"
    assert writer.about["get"] == zero_copy
    assert writer.ask("write", chain="a", pages=5) == {"stored": 5}
    assert reader.ask("prefetch", chain="a", pages=8) == {"found": 5, "loaded": 5, "same": 5}
    assert reader.ask("prefetch", chain="b", pages=8) == {"found": 0, "loaded": 0, "same": 0}
    written, read = writer.ask("counters"), reader.ask("counters")
    assert written["bytes_written"] == read["bytes_read"] == 5 * writer.about["page_bytes"]
    assert reader.ask("stats") == {"prefetched": [5], "stored": []}
    for engine in (writer, reader):
        assert engine.ask("alive") == {"alive": True}
        engine.end()
