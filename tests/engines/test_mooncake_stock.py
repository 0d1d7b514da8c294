"""The engines' own Mooncake backends, unchanged, on kvstore through the drop-in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import kvstore
from tests.engines.conftest import environment
from tests.engines.processes import EngineProcess
from tests.engines.tiny_model import write_llama
from tests.engines.vllm_engine import Engine, prompt
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.timeout(420)]

LAUNCHER = ["-m", "kvstore.compat.mooncake"]
OURS = "kvstore.compat.mooncake.store"


@pytest.fixture
def cluster_folder(tmp_path: Path) -> Path:
    """Apart from the engines' logs: they may log errors that they live with."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    return folder


def mooncake(cluster: Cluster, segment: int = 0) -> dict[str, Any]:
    """Mooncake's own configuration of a client."""
    return {
        "local_hostname": "localhost",
        "metadata_server": "P2PHANDSHAKE",
        "global_segment_size": segment,
        "local_buffer_size": 16 << 20,
        "protocol": "tcp",
        "device_name": "",
        "master_server_address": cluster.address,
    }


# --- LMCache ---


@pytest.mark.parametrize("save_chunk_meta", [True, False])
def test_lmcache(cluster: Cluster, package: Path, tmp_path: Path, save_chunk_meta: bool) -> None:
    python = environment("vllm")
    extra = {**mooncake(cluster), "save_chunk_meta": save_chunk_meta, "transfer_timeout": 30}
    arguments = [*LAUNCHER, "-m", "tests.engines.lmcache_mooncake_driver", json.dumps(extra)]
    numbers = list(range(6))
    for name in ("writer", "reader"):
        engine = EngineProcess(python, package, arguments, tmp_path / f"{name}.log")
        try:
            about = engine.receive()
            assert (about["connector"], about["store"]) == ("MooncakestoreConnector", OURS)
            assert about["save_chunk_meta"] is save_chunk_meta and about["registered"]
            if name == "writer":
                assert engine.ask("read", numbers=numbers)["loaded"] == 0
                assert engine.ask("write", numbers=numbers) == {"exist": 6}
            else:
                found = engine.ask("read", numbers=[*numbers, 99])
                assert found == {"found": 6, "loaded": 6, "same": 6}
            engine.end()
        finally:
            engine.kill()


# --- SGLang ---


# SGLang's Mooncake backend itself refuses layer_first for MHA.
POOLS = [
    *(("mha", layout) for layout in ("page_first", "page_first_direct")),
    *(("mla", layout) for layout in ("page_first", "layer_first", "page_first_direct")),
]


def test_sglang(cluster: Cluster, package: Path, tmp_path: Path) -> None:
    """One process writes, another prefetches: bytes identical, for every layout and pool."""
    python = environment("sglang")
    arguments = [*LAUNCHER, "-m", "tests.engines.sglang_driver"]
    engines = [
        EngineProcess(python, package, arguments, tmp_path / f"{name}.log")
        for name in ("writer", "reader")
    ]
    extra = {**mooncake(cluster), "check_server": False}
    http = int(cluster.master.ports["http_port"])
    try:
        for engine in engines:
            assert engine.receive() == {"ready": True}
        writer, reader = engines
        for pool, layout in POOLS:
            tag = {"extra_backend_tag": f"{pool}-{layout}"}
            opened = [
                engine.ask(
                    "open", backend="mooncake", pool=pool, layout=layout, extra={**extra, **tag}
                )
                for engine in engines
            ]
            assert [one["backend"] for one in opened] == ["MooncakeStore"] * 2
            assert writer.ask("write", chain="a", pages=5) == {"stored": 5}
            found = reader.ask("prefetch", chain="a", pages=8)
            assert found == {"found": 5, "loaded": 5, "same": 5}, (pool, layout)
            assert reader.ask("prefetch", chain="b", pages=4)["found"] == 0
            assert [engine.ask("alive") for engine in engines] == [{"alive": True}] * 2
        # It polls the master's HTTP port when it is told to look before it starts.
        extra |= {"check_server": True, "master_metrics_port": http}
        assert reader.ask("open", backend="mooncake", pool="mha", extra=extra)["backend"]
        # Lending memory needs the server extra, which this environment has not: refused aloud.
        extra |= {"global_segment_size": 64 << 20}
        refused = reader.ask("open", backend="mooncake", pool="mha", extra=extra)
        assert "-1011" in refused["error"]
        assert "kvcache-store[server]" in reader.log.read_text()
        for engine in engines:
            engine.end()
    finally:
        for engine in engines:
            engine.kill()


# --- vLLM ---


def launched(python: Path, folder: Path) -> Path:
    """A program that runs the environment's Python with the drop-in."""
    program = folder / "python-with-mooncake"
    program.write_text(f'#!/bin/sh\nexec {python} {" ".join(LAUNCHER)} "$@"\n')
    program.chmod(0o755)
    return program


# Two layers, keys and values, 32 tokens, 2 heads of 32 float32.
PAGE_BYTES = 2 * 2 * 32 * 2 * 32 * 4
PROMPTS = [prompt(200), prompt(333)]
CACHED = [192, 320]


@pytest.fixture
def engines(
    cluster: Cluster, package: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[list[Engine]]:
    """Two engines with vLLM's own connector; its parameter is the memory that each lends."""
    segment = int(request.param)
    python = launched(environment("vllm"), tmp_path)
    model = write_llama(tmp_path / "model")
    config = tmp_path / "mooncake.json"
    mode = "embedded" if segment else "standalone-store"
    config.write_text(json.dumps({**mooncake(cluster, segment), "mode": mode}))
    transfer = {
        "kv_connector": "MooncakeStoreConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
    }
    environ = {"MOONCAKE_CONFIG_PATH": str(config), "PYTHONHASHSEED": "0"}
    with ExitStack() as stack:
        started = [
            stack.enter_context(Engine(name, python, package, model, tmp_path, transfer, environ))
            for name in ("first", "second")
        ]
        for engine in started:
            engine.wait_started()
        yield started
        for engine in started:
            engine.end()


def stored(store: kvstore.Store) -> list[int]:
    """Sizes of the pages that are stored."""
    return store.batch_sizes(list(store.keys("")))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engines", [0], indirect=True)
def test_vllm(cluster: Cluster, engines: list[Engine]) -> None:
    """The second engine finds the first one's pages and says the same; a lost node costs time."""
    first, second = engines
    said = [first.generate(tokens) for tokens in PROMPTS]
    assert [one.cached for one in said] == [0, 0]
    store = cluster.connect(namespace="mooncake")
    wait_for(lambda: len(stored(store)) >= 16, "the pages to be stored", 60)
    again = [second.generate(tokens) for tokens in PROMPTS]
    assert [one.tokens for one in again] == [one.tokens for one in said]
    assert [one.cached for one in again] == CACHED
    pages = stored(store)
    assert set(pages) == {PAGE_BYTES}
    counted = store.stats()["node_counters"]["a"].items()
    put = sum(count for name, count in counted if name.startswith("put_bytes_"))
    assert put == len(pages) * PAGE_BYTES

    # The control: what is stored is what the engine computes with.
    keys = list(store.keys(""))
    kept = store.batch_get(keys)
    zeros = [bytes(PAGE_BYTES)] * len(keys)
    assert all(status.ok for status in store.batch_put(keys, zeros, upsert=True))
    second.forget()
    wrong = second.generate(PROMPTS[1])
    assert wrong.cached == CACHED[1] and wrong.tokens != said[1].tokens
    right = [page for page in kept if page is not None]
    assert all(status.ok for status in store.batch_put(keys, right, upsert=True))
    second.forget()
    assert second.generate(PROMPTS[1]) == again[1]

    cluster.nodes["a"].kill()
    second.forget()
    lost = [second.generate(tokens) for tokens in PROMPTS]
    assert [one.tokens for one in lost] == [one.tokens for one in said]
    assert all(one.cached == 0 for one in lost), "computed again"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engines", [128 << 20], indirect=True)
def test_vllm_with_memory_of_the_engines_alone(cluster: Cluster, engines: list[Engine]) -> None:
    cluster.nodes["a"].terminate()
    wait_for(lambda: cluster.node_states().get("a") != "alive", "the other node to leave")
    first, second = engines
    assert list(cluster.node_states().values()).count("alive") == 2
    said = [first.generate(tokens) for tokens in PROMPTS]
    store = cluster.connect(namespace="mooncake")
    wait_for(lambda: len(stored(store)) >= 16, "the pages to be stored", 60)
    again = [second.generate(tokens) for tokens in PROMPTS]
    assert [one.tokens for one in again] == [one.tokens for one in said]
    assert [one.cached for one in again] == CACHED
