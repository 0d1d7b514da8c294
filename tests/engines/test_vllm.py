"""Real vLLM engines on the CPU share their KV cache through a real cluster."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import kvstore
from tests.engines.conftest import environment
from tests.engines.tiny_model import HEAD, KV_HEADS, LAYERS, write_gemma3, write_llama
from tests.engines.vllm_engine import Engine, Generated, prompt
from tests.support.cluster import Cluster
from tests.support.processes import wait_for

pytestmark = [pytest.mark.engines, pytest.mark.cluster, pytest.mark.timeout(1200)]

BLOCK = 32
PAGE_BYTES = BLOCK * LAYERS * 2 * KV_HEADS * HEAD * 4
SHORT, LONG = prompt(200), prompt(333)
SHORT_PAGES, LONG_PAGES = 192 // BLOCK, 320 // BLOCK
GENERATED = 24
FAULT = ("vllm_fault", "FaultConnector")


class Engines:
    """Starts engines of one model on a cluster."""

    def __init__(self, cluster: Cluster, package: Path, folder: Path) -> None:
        self.python = environment("vllm")
        self.cluster = cluster
        self.model = write_llama(folder / "model")
        self._package = package
        self._folder = folder

    def start(
        self,
        name: str,
        role: str = "kv_both",
        connector: tuple[str, str] = ("kvstore.integrations.vllm", "KVStoreConnector"),
        environment: dict[str, str] | None = None,
        engine: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Engine:
        """Start an engine; its deadlines suit a machine that is busy with other things."""
        transfer = {
            "kv_connector_module_path": connector[0],
            "kv_connector": connector[1],
            "kv_role": role,
            "kv_connector_extra_config": {
                "master": self.cluster.address,
                "transport": self.cluster.transport,
                "timeout_ms": 10_000,
                "lookup_timeout_ms": 5_000,
                **extra,
            },
        }
        return Engine(
            name,
            self.python,
            self._package,
            self.model,
            self._folder,
            transfer,
            environment,
            **(engine or {}),
        )


@pytest.fixture
def engines(cluster: Cluster, package: Path, tmp_path: Path) -> Engines:
    return Engines(cluster, package, tmp_path)


def namespace_of(engine: Engine) -> str:
    found = re.search(r"kvstore namespace=(\S+)", engine.log.read_text())
    assert found, engine.tail()
    return found.group(1)


def counters(store: kvstore.Store) -> dict[str, int]:
    return dict(store.stats()["node_counters"]["a"])


def put_bytes(store: kvstore.Store) -> int:
    """By whatever transport."""
    return sum(count for name, count in counters(store).items() if name.startswith("put_bytes_"))


def greetings(cluster: Cluster, model: Path) -> list[int]:
    """Return the sizes of what the engines of a model said of themselves."""
    namespace = f"engines-{hashlib.sha256(str(model).encode()).hexdigest()[:24]}"
    with kvstore.connect(cluster.address, namespace=namespace) as store:
        sizes = map(store.size, store.keys())
        return [size for size in sizes if size is not None]


def test_a_second_engine_computes_only_what_the_first_has_not(
    engines: Engines, cluster: Cluster, tmp_path: Path
) -> None:
    model = engines.model
    with engines.start("writer") as writer:
        writer.wait_started()
        first = [writer.generate(SHORT), writer.generate(LONG)]
        assert [one.cached for one in first] == [0, 0]
        store = cluster.connect(namespace=namespace_of(writer))
        pages = sum((length + GENERATED - 1) // BLOCK for length in (200, 333))
        wait_for(lambda: len(list(store.keys())) == pages, f"{pages} pages to be stored")
        assert set(map(store.size, store.keys())) == {PAGE_BYTES}
        written = wait_for(lambda: greetings(cluster, model), "the writer to greet")
        assert put_bytes(store) == pages * PAGE_BYTES + sum(written)
        writer.end()

    kill = tmp_path / "kill"
    before = counters(store)
    with engines.start(
        "reader",
        connector=FAULT,
        environment={"KVSTORE_TEST_KILL": str(kill)},
        transport="tcp",
    ) as reader:
        reader.wait_started()
        assert namespace_of(reader) == namespace_of(writer)

        second = [reader.generate(SHORT), reader.generate(LONG)]
        assert [one.cached for one in second] == [192, 320]
        assert [one.tokens for one in second] == [one.tokens for one in first]
        assert reader.count("vllm:kvstore_connector")["tokens_loaded"] == 192 + 320
        wait_for(lambda: len(greetings(cluster, model)) == 2, "the reader to greet")
        read = counters(store)["get_bytes_tcp"] - before["get_bytes_tcp"]
        assert read == (SHORT_PAGES + LONG_PAGES) * PAGE_BYTES + sum(written)
        assert put_bytes(store) == pages * PAGE_BYTES + sum(greetings(cluster, model))

        with_zeros(reader, store, first[1])
        with_node_killed(reader, cluster, kill, first)
        reader.end()


@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_an_engine_outlives_damage_of_the_memory_that_it_maps(
    engines: Engines, cluster: Cluster, damage: str
) -> None:
    cluster.expected_errors.append("segment_damaged")
    with engines.start("engine", transport="auto") as engine:
        engine.wait_started()
        first = engine.generate(LONG)
        store = cluster.connect(namespace=namespace_of(engine))
        wait_for(lambda: len(list(store.keys())) >= LONG_PAGES, "its pages to be stored")
        engine.forget()
        assert engine.generate(LONG).cached == 320
        assert counters(store)["put_bytes_shm"] >= LONG_PAGES * PAGE_BYTES, "no mapped memory"

        os.truncate(cluster.segment_dirs["a"] / "segment", 4096 if damage == "cut" else 0)
        engine.forget()
        assert engine.generate(LONG).tokens == first.tokens
        log = cluster.nodes["a"].log
        wait_for(lambda: "segment_damaged" in log.read_text(), "the node to notice")

        def finds_all() -> bool:
            engine.forget()
            again = engine.generate(LONG)
            assert again.tokens == first.tokens
            return again.cached == 320

        wait_for(finds_all, "the pages to be stored and found again", timeout_s=60, poll_s=1)
        engine.end()


def with_zeros(reader: Engine, store: kvstore.Store, first: Generated) -> None:
    """The control: what is stored is what the engine computes with."""
    keys = list(store.keys())
    kept = dict(zip(keys, store.batch_get(keys), strict=True))
    for key in keys:
        store.remove(key)
        assert store.put(key, bytes(PAGE_BYTES)) is kvstore.Status.Ok
    reader.forget()
    zeros = reader.generate(LONG)
    assert zeros.cached == 320
    assert zeros.tokens != first.tokens
    for key, page in kept.items():
        assert page is not None
        store.remove(key)
        assert store.put(key, page) is kvstore.Status.Ok
    reader.forget()
    again = reader.generate(LONG)
    assert (again.cached, again.tokens) == (320, first.tokens)


def with_node_killed(reader: Engine, cluster: Cluster, kill: Path, first: list[Generated]) -> None:
    """A node dies after its pages were promised: they are computed, and nothing else is noticed."""
    reader.forget()
    kill.write_text(str(cluster.nodes["a"].pid))
    long = reader.generate(LONG)
    assert not kill.exists(), "no load was begun"
    assert long.tokens == first[1].tokens
    assert long.cached < 320
    found = re.search(r"Recovered from KV load failure: .*\((\d+) tokens", reader.log.read_text())
    assert found and int(found.group(1)) == 320, reader.tail()

    short = reader.generate(SHORT)  # with no node at all
    assert (short.cached, short.tokens) == (0, first[0].tokens)

    cluster.nodes["a"].kill()  # it is dead; wait for it
    cluster.start_node("a")  # what it held is still there
    reader.forget()

    def finds_all() -> bool:
        found = reader.generate(LONG).cached == 320
        if not found:
            reader.forget()
        return found

    wait_for(finds_all, "the pages to be found again", timeout_s=60, poll_s=1)
    assert reader.generate(LONG).tokens == first[1].tokens

    cluster.master.kill()
    reader.forget()
    assert reader.generate(LONG).tokens == first[1].tokens


def test_a_prefill_engine_writes_what_a_decode_engine_reads(
    engines: Engines, cluster: Cluster
) -> None:
    with (
        engines.start("prefill", "kv_producer") as prefill,
        engines.start("decode", "kv_consumer", wait_ms=20_000, save_decode=True) as decode,
    ):
        prefill.wait_started()
        decode.wait_started()
        store = cluster.connect(namespace=namespace_of(prefill))
        assert namespace_of(decode) == namespace_of(prefill)

        first = prefill.generate(LONG, max_tokens=1)
        second = decode.generate(LONG)
        assert (first.cached, second.cached) == (0, 320)
        assert second.tokens[0] == first.tokens[0]
        # The decode engine writes the page that its own tokens fill, and no other.
        wait_for(lambda: len(list(store.keys())) == LONG_PAGES + 1, "the decoded page")

        prefill.forget()
        alone = prefill.generate(LONG)  # a producer computes everything
        assert (alone.cached, alone.tokens) == (0, second.tokens)

        decode.forget()
        next_turn = [*LONG, *second.tokens, *prompt(20)]
        third = decode.generate(next_turn)
        assert third.cached == 320 + BLOCK
        assert third.tokens == prefill.generate(next_turn).tokens
        decode.end()
        prefill.end()


def test_a_hybrid_models_groups_are_found_together_and_fail_together(
    engines: Engines, cluster: Cluster, tmp_path: Path
) -> None:
    """One layer has a sliding window: blocks outside of it are not loaded."""
    engines.model = write_gemma3(tmp_path / "gemma", window=2 * BLOCK)
    kill, told = tmp_path / "kill", tmp_path / "events"
    with engines.start(
        "hybrid",
        connector=FAULT,
        environment={"KVSTORE_TEST_KILL": str(kill), "KVSTORE_TEST_EVENTS": str(told)},
        engine={
            "max_num_batched_tokens": 4 * BLOCK,
            "events": {"enable_kv_cache_events": True, "publisher": "null"},
        },
    ) as engine:
        engine.wait_started()
        store = cluster.connect(namespace=namespace_of(engine))
        first = engine.generate(LONG)
        pages = (333 + GENERATED - 1) // BLOCK
        wait_for(lambda: len(list(store.keys())) == 2 * pages, f"{pages} pages of two groups")
        assert set(map(store.size, store.keys())) == {PAGE_BYTES // 2}

        engine.forget()
        second = engine.generate(LONG)
        assert (first.cached, second.cached) == (0, 320)
        assert second.tokens == first.tokens
        events = [json.loads(line) for line in told.read_text().splitlines()]
        for group in (0, 1):
            assert_told(events, group, [*LONG, *first.tokens][: pages * BLOCK])

        engine.forget()
        kill.write_text(str(cluster.nodes["a"].pid))
        third = engine.generate(LONG)
        assert not kill.exists(), "no load was begun"
        assert third.tokens == first.tokens
        cluster.nodes["a"].kill()  # it is dead; wait for it
        engine.end()


def assert_told(events: list[dict[str, Any]], group: int, tokens: list[int]) -> None:
    """The events of a group are a chain of blocks that holds the tokens."""
    mine = [event for event in events if event["group"] == group]
    parent = None
    for event in mine:
        assert (event["parent"], event["size"], event["medium"]) == (parent, BLOCK, "STORAGE")
        assert len(event["tokens"]) == BLOCK * len(event["hashes"])
        parent = event["hashes"][-1]
    assert [token for event in mine for token in event["tokens"]] == tokens


def test_each_of_two_tensor_parallel_ranks_has_its_own_objects(
    engines: Engines, cluster: Cluster
) -> None:
    with engines.start(
        "parallel",
        environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        engine={"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
    ) as engine:
        engine.wait_started()
        store = cluster.connect(namespace=namespace_of(engine))
        first = engine.generate(LONG)
        pages = (333 + GENERATED - 1) // BLOCK
        wait_for(lambda: len(list(store.keys())) == 2 * pages, f"{pages} pages of two ranks")
        assert set(map(store.size, store.keys())) == {PAGE_BYTES // 2}
        assert {key.rpartition("-")[2] for key in store.keys()} == {"r0", "r1"}  # noqa: SIM118

        engine.forget()
        second = engine.generate(LONG)
        assert (first.cached, second.cached) == (0, 320)
        assert second.tokens == first.tokens
        engine.end()


def test_rejected_drafts_are_in_no_page(engines: Engines, cluster: Cluster) -> None:
    draft = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    repetitive = prompt(40) * 5
    with engines.start("speculating", engine={"speculative_config": draft}) as engine:
        engine.wait_started()
        store = cluster.connect(namespace=namespace_of(engine))
        first = engine.generate(repetitive, max_tokens=100)
        pages = (200 + 100 - 1) // BLOCK
        wait_for(lambda: len(list(store.keys())) == pages, f"{pages} pages")

        engine.forget()
        next_turn = [*repetitive, *first.tokens, *prompt(10)]
        second = engine.generate(next_turn)
        assert second.cached == pages * BLOCK
        assert store.flush() is kvstore.Status.Ok
        engine.forget()
        third = engine.generate(next_turn)  # everything computed
        assert (third.cached, third.tokens) == (0, second.tokens)
        engine.end()


def test_preempted_requests_lose_nothing(engines: Engines, cluster: Cluster) -> None:
    """Three requests need more blocks than there are, while a part of these is being saved."""
    prompts = [prompt(200, seed) for seed in (1, 2, 3)]
    few = {"num_gpu_blocks_override": 24, "max_model_len": 512}
    with engines.start("short", engine=few) as engine:
        engine.wait_started()
        store = cluster.connect(namespace=namespace_of(engine))
        alone = [engine.generate(one, max_tokens=100).tokens for one in prompts]
        assert store.flush() is kvstore.Status.Ok
        engine.forget()
        together = engine.generate_together(prompts, max_tokens=100)
        assert [one.tokens for one in together] == alone
        assert engine.count("vllm:num_preemptions")[""] > 0
        engine.forget()
        again = engine.generate_together(prompts, max_tokens=100)
        assert [one.tokens for one in again] == alone
        assert sum(one.cached for one in again) > 0
        engine.end()


def test_staging_memory_and_addresses_write_the_same_objects(package: Path) -> None:
    ran = subprocess.run(
        [environment("vllm"), str(Path(__file__).with_name("vllm_memory_check.py"))],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1].startswith("ok"), ran.stderr
