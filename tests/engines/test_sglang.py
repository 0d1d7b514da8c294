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

NOTHING = {"found": 0, "loaded": 0, "same": 0}
NO_INJECTION = {"SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0"}

Open = Callable[..., EngineProcess]


def whole(pages: int) -> dict[str, int]:
    return {"found": pages, "loaded": pages, "same": pages}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        cluster.start_node("a")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def processes(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[EngineProcess]]:
    """Two processes that have imported SGLang, which takes long; tests open engines in them."""
    python = environment("sglang")
    logs = tmp_path_factory.mktemp("sglang")
    arguments = ["-m", "tests.engines.sglang_driver"]
    started: list[EngineProcess] = []
    try:
        for name in ("first", "second"):
            started.append(EngineProcess(python, package, arguments, logs / f"{name}.log"))
        for process in started:
            assert process.receive() == {"ready": True}
        yield started
        for process in started:
            process.end()
    finally:
        for process in started:
            process.kill()


@pytest.fixture
def open_engine(cluster: Cluster, processes: list[EngineProcess]) -> Iterator[Open]:
    """Opens an engine on the cluster in the next process; closed with the test."""
    opened: list[EngineProcess] = []

    def open_engine(
        pool: str = "mha",
        layout: str = "page_first",
        interface_v1: int = 1,
        extra: dict[str, Any] | None = None,
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
        process = processes[len(opened) % len(processes)]
        opened.append(process)
        process.about = process.ask("open", pool=pool, layout=layout, extra=own, **config)
        return process

    yield open_engine
    for process in dict.fromkeys(opened):
        assert process.ask("alive") == {"alive": True}, "a storage thread of SGLang has ended"
        assert process.ask("close") == {}


@pytest.mark.parametrize("interface_v1", [0, 1])
@pytest.mark.parametrize("layout", ["page_first", "layer_first", "page_first_direct"])
@pytest.mark.parametrize("pool", ["mha", "mla"])
def test_one_process_writes_and_another_prefetches_the_same_bytes(
    open_engine: Open, pool: str, layout: str, interface_v1: int
) -> None:
    writer = open_engine(pool, layout, interface_v1)
    reader = open_engine(pool, layout, interface_v1)
    assert writer.about["backend"] == "KVStoreHiCache"
    assert writer.about["get"] == ("_page_get_zero_copy" if interface_v1 else "_generic_page_get")
    assert writer.ask("write", chain="a", pages=5) == {"stored": 5}
    assert reader.ask("prefetch", chain="a", pages=8) == whole(5)
    assert reader.ask("prefetch", chain="b", pages=8) == NOTHING
    written, read = writer.ask("counters"), reader.ask("counters")
    assert written["bytes_written"] == read["bytes_read"] == 5 * writer.about["page_bytes"]
    assert reader.ask("stats") == {"prefetched": [5], "stored": []}
    assert writer.ask("stats") == {"prefetched": [], "stored": [5]}
