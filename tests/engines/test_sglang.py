"""SGLang's real HiCache controller with KVStoreHiCache on a real cluster."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import environment
from tests.engines.processes import EngineProcess, two_processes
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.timeout(180)]

NOTHING = {"found": 0, "loaded": 0, "same": 0}

Open = Callable[..., EngineProcess]


def whole(pages: int) -> dict[str, int]:
    return {"found": pages, "loaded": pages, "same": pages}


@pytest.fixture(scope="module")
def processes(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[EngineProcess]]:
    """Two processes that have imported SGLang, which takes long; tests open engines in them."""
    logs = tmp_path_factory.mktemp("sglang")
    with two_processes(
        environment("sglang"), package, "tests.engines.sglang_driver", logs
    ) as started:
        yield started


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
            "transport": cluster.transport,
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


LAYOUTS = [
    *[
        ("mha", layout)
        for layout in ("page_first", "layer_first", "page_first_direct", "page_head")
    ],
    *[("mla", layout) for layout in ("page_first", "layer_first", "page_first_direct")],
]


@pytest.mark.parametrize("interface_v1", [0, 1])
@pytest.mark.parametrize(("pool", "layout"), LAYOUTS)
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


def test_what_is_compared_is_what_the_store_gave(open_engine: Open, cluster: Cluster) -> None:
    """The control: with other bytes of the same size under the same keys, no page is right."""
    writer, reader = open_engine(), open_engine()
    assert writer.ask("write", chain="a", pages=3) == {"stored": 3}
    store = cluster.connect(namespace=writer.about["namespace"])
    keys = list(store.keys())
    assert [store.size(key) for key in keys] == [writer.about["page_bytes"]] * 3
    store.batch_remove(keys)
    store.batch_put(keys, [bytes(writer.about["page_bytes"])] * 3)
    assert reader.ask("prefetch", chain="a", pages=3) == {"found": 3, "loaded": 3, "same": 0}


@pytest.mark.parametrize(
    "other",
    [{"layout": "layer_first"}, {"pool": "mla"}, {"interface_v1": 0}, {"tp_size": 2}],
    ids=lambda other: next(iter(other)),
)
def test_another_format_is_a_miss_and_a_warning_names_the_engine(
    open_engine: Open, other: dict[str, Any]
) -> None:
    writer = open_engine("mha", "page_first")
    assert writer.ask("write", chain="a", pages=3) == {"stored": 3}
    reader = open_engine(**other)
    assert reader.about["namespace"] != writer.about["namespace"]
    assert reader.ask("prefetch", chain="a", pages=3) == NOTHING
    assert reader.ask("counters")["peers_that_share_no_key"] == 1
    assert "stores pages of this model in another format" in reader.log.read_text()


def test_weights_of_another_revision_are_another_format(open_engine: Open) -> None:
    writer = open_engine(extra={"weights_revision": "1"})
    reader = open_engine(extra={"weights_revision": "2"})
    assert writer.ask("write", chain="a", pages=3) == {"stored": 3}
    assert reader.ask("prefetch", chain="a", pages=3) == NOTHING


def test_ranks_with_heads_of_their_own_never_mix(open_engine: Open) -> None:
    first = open_engine(tp_rank=0, tp_size=2, pp_rank=1, pp_size=2)
    second = open_engine(tp_rank=1, tp_size=2, pp_rank=1, pp_size=2)
    assert first.about["namespace"] == second.about["namespace"]
    assert first.ask("write", chain="a", pages=3) == {"stored": 3}
    assert second.ask("prefetch", chain="a", pages=3) == NOTHING
    assert second.ask("write", chain="a", pages=2) == {"stored": 2}
    assert second.ask("prefetch", chain="a", pages=3) == whole(2)
    assert first.ask("prefetch", chain="a", pages=3) == whole(3)


def test_engines_with_other_numbers_of_ranks_share_pages_split_by_heads(open_engine: Open) -> None:
    split = {"tp_lcm_size": 2}
    whole_model = open_engine("mha", "page_head", extra=split, tp_rank=0, tp_size=1)
    assert whole_model.ask("write", chain="a", pages=3) == {"stored": 3}
    for rank in (0, 1):
        half = open_engine("mha", "page_head", extra=split, tp_rank=rank, tp_size=2)
        assert half.about["namespace"] == whole_model.about["namespace"]
        assert half.ask("prefetch", chain="a", pages=4) == whole(3)
        assert half.ask("write", chain="b", pages=2) == {"stored": 2}
    again = open_engine("mha", "page_head", extra=split, tp_rank=0, tp_size=1)
    assert again.ask("prefetch", chain="b", pages=4) == whole(2)


def test_replicated_pages_have_one_writer_and_all_ranks_read_them(open_engine: Open) -> None:
    first = open_engine("mla", tp_rank=0, tp_size=2)
    second = open_engine("mla", tp_rank=1, tp_size=2)
    assert second.ask("write", chain="a", pages=3) == {"stored": 0}  # SGLang leaves it to rank 0
    assert first.ask("write", chain="a", pages=3) == {"stored": 3}
    assert second.ask("prefetch", chain="a", pages=3) == whole(3)


@pytest.mark.parametrize("interface_v1", [0, 1])
def test_all_pools_of_a_hybrid_model(open_engine: Open, interface_v1: int) -> None:
    writer = open_engine("hybrid", "page_first_direct", interface_v1)
    reader = open_engine("hybrid", "page_first_direct", interface_v1)
    assert writer.ask("write", chain="a", pages=4) == {"stored": 4}
    # A further write, as the next turn makes it: its state lies at the end of these pages.
    assert writer.ask("write", chain="a", first=4, pages=3) == {"stored": 3}
    answer = reader.ask("prefetch", chain="a", pages=9)
    assert answer == {
        **whole(7),
        "mamba": {"loaded": 1, "same": 1},
        "swa": {"loaded": 2, "same": 2},
        "draft": {"loaded": 7, "same": 7},
    }
    # Up to page 6 there is KV; but state to go on from only at the ends of the two writes.
    assert reader.ask("prefetch", chain="a", pages=6)["found"] == 4


def test_prefill_and_decode_engines_give_each_other_what_they_computed(open_engine: Open) -> None:
    extra = {"hicache_storage_pass_prefix_keys": True}
    prefill = open_engine("mha", "layer_first", extra=extra)
    decode = open_engine("mha", "layer_first", extra={**extra, "transport": "tcp"})
    assert prefill.ask("write", chain="turn", pages=6) == {"stored": 6}
    assert decode.ask("prefetch", chain="turn", pages=6) == whole(6)
    assert decode.ask("offload", chain="turn", first=6, pages=3) == {"last": True}  # its own tokens
    assert prefill.ask("prefetch", chain="turn", pages=12) == whole(9)
    assert decode.ask("counters")["bytes_written"] == 3 * decode.about["page_bytes"]


def test_flush_empties_one_model(open_engine: Open, cluster: Cluster) -> None:
    one = open_engine(model="tiny/llama")
    other = open_engine(model="tiny/mistral")
    for engine in (one, other):
        assert engine.ask("write", chain="a", pages=3) == {"stored": 3}
    cluster.cli("flush", "--namespace", one.about["namespace"])
    assert one.ask("prefetch", chain="a", pages=3) == NOTHING
    assert other.ask("prefetch", chain="a", pages=3) == whole(3)
    other.ask("clear")
    assert other.ask("prefetch", chain="a", pages=3) == NOTHING


@pytest.mark.parametrize("interface_v1", [0, 1])
def test_nothing_breaks_when_sglang_injects_failures(open_engine: Open, interface_v1: int) -> None:
    environ = {
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.3",
        "SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY": "0.01",
    }
    writer = open_engine("hybrid", "page_first", interface_v1, environ=environ)
    reader = open_engine("hybrid", "page_first", interface_v1, environ=environ)
    assert writer.about["injected"] and reader.about["injected"]
    loaded = 0
    for turn in range(30):
        stored = writer.ask("write", chain=f"turn {turn % 10}", pages=4)["stored"]
        assert stored in (0, 4)
        answer = reader.ask("prefetch", chain=f"turn {turn % 10}", pages=5)
        assert answer["same"] == answer["loaded"] <= answer["found"] <= 4
        for pool in ("mamba", "swa", "draft"):
            if pool in answer:
                assert answer[pool]["same"] == answer[pool]["loaded"]
        loaded += answer["loaded"]
    assert loaded > 0


def test_a_node_killed_in_the_middle_is_misses_and_its_return_hits(
    open_engine: Open, cluster: Cluster
) -> None:
    writer = open_engine(extra={"timeout_ms": 500})
    reader = open_engine(extra={"timeout_ms": 500})
    for turn in range(4):
        assert writer.ask("write", chain=f"turn {turn}", pages=8) == {"stored": 8}
    assert reader.ask("prefetch", chain="turn 0", pages=8) == whole(8)
    for engine, command in ((writer, "write"), (reader, "prefetch")):
        engine.send(command, chain="turn 1", pages=8)  # in progress while the node dies
    cluster.nodes["a"].kill()
    stored, read = writer.receive(), reader.receive()
    assert stored["stored"] in (0, 8)
    assert read["same"] == read["loaded"] <= 8
    for turn in range(6):  # far more than open the breaker
        answer = reader.ask("prefetch", chain=f"turn {turn % 4}", pages=8)
        assert answer["same"] == answer["loaded"]
        assert writer.ask("write", chain=f"lost {turn}", pages=2)["stored"] in (0, 2)
    cluster.start_node("a")

    def found() -> bool:
        return reader.ask("prefetch", chain="turn 3", pages=8) == whole(8)

    wait_for(found, "the pages that the restarted node kept", 30, poll_s=0.2)
    wait_for(
        lambda: writer.ask("write", chain="later", pages=2) == {"stored": 2}, "writes", 30, 0.2
    )


def test_a_node_that_hangs_costs_deadlines_and_no_more(open_engine: Open, cluster: Cluster) -> None:
    writer = open_engine()
    reader = open_engine(extra={"timeout_ms": 300, "transport": "tcp"})
    assert writer.ask("write", chain="a", pages=8) == {"stored": 8}
    node = cluster.nodes["a"]
    node.freeze()
    started = time.monotonic()
    for _ in range(10):
        answer = reader.ask("prefetch", chain="a", pages=8)
        assert answer["same"] == answer["loaded"]
    assert time.monotonic() - started < 10  # a deadline for a lookup and a read each, on a busy day
    # Then nothing of that node is found, or nothing is asked: most prefetches cost no deadline.
    assert 0 < reader.ask("counters")["get_failures"] <= 3
    node.signal(signal.SIGCONT)

    def found() -> bool:
        return reader.ask("prefetch", chain="a", pages=8) == whole(8)

    wait_for(found, "the pages of the node that goes on", 30, poll_s=0.2)


def test_without_its_master_an_engine_starts_and_finds_it_later(
    open_engine: Open, cluster: Cluster
) -> None:
    cluster.master.kill()
    engine = open_engine(extra={"timeout_ms": 300})
    for turn in range(5):
        assert engine.ask("prefetch", chain=f"turn {turn}", pages=3) == NOTHING
        assert engine.ask("write", chain=f"turn {turn}", pages=3) == {"stored": 0}
    counters = engine.ask("counters")
    assert counters["breaker_open"] == 1
    assert counters["skipped"] > 0
    cluster.restart_master()
    cluster.wait_state("a", "alive")
    wait_for(
        lambda: engine.ask("write", chain="later", pages=2) == {"stored": 2}, "a write", 30, 0.2
    )
    assert engine.ask("prefetch", chain="later", pages=2) == whole(2)


def test_a_wrong_key_of_the_extra_config_is_refused_aloud(processes: list[EngineProcess]) -> None:
    own = {
        "backend_name": "kvstore",
        "module_path": "kvstore.integrations.sglang",
        "class_name": "KVStoreHiCache",
        "mastr": "127.0.0.1:50051",
    }
    answer = processes[0].ask("open", pool="mha", extra=own)
    assert "unknown key 'mastr'; did you mean 'master'?" in answer["error"]
