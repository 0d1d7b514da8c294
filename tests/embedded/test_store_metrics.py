"""kvstore_store_*: the counters of a process's own stores, in a registry of prometheus_client."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import kvstore
from kvstore import store_metrics
from kvstore.errors import MissReason
from kvstore.integrations.options import _serve_metrics
from kvstore.node.http import CLIENT_HELP
from tests.support import exposition
from tests.support.exposition import Exported

OWN = {"tenant": "default", "namespace": "n"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scrape(registry: CollectorRegistry) -> dict[str, Exported]:
    return exposition.parse(generate_latest(registry).decode())


def test_a_store_is_exported_as_it_counts(registry: CollectorRegistry) -> None:
    with kvstore.open(segment_size="16mb", namespace="n") as store:
        store_metrics.register(store, registry)
        store_metrics.register(store, registry)  # once is enough, twice is the same
        store.put("a", b"12345")
        store.get("a")
        store.get("absent")
        assert store.prefix_length(["a", "no", "a"]) == 1
        assert store.batch_exists(["a", "no", "a"]) == [True, False, True]
        found = scrape(registry)
        for name, labels, count in (
            ("hits", {"path": "shm"}, 1),
            ("hits", {"path": "socket"}, 0),
            ("misses", {"reason": "absent"}, 1),
            ("bytes", {"operation": "get", "path": "shm"}, 5),
            ("bytes", {"operation": "put", "path": "shm"}, 5),
            ("puts", {"result": "ok"}, 1),
            ("sought_keys", {"result": "present"}, 1 + 2),
            ("sought_keys", {"result": "absent"}, 2 + 1),
            ("lookups", {}, 3),
        ):
            value = exposition.value(found, f"kvstore_store_{name}_total", **OWN, **labels)
            assert value == count, (name, labels)
        assert store.counters().items() <= store.stats().items()


def test_what_a_closed_store_counted_stays(registry: CollectorRegistry) -> None:
    for total in (1, 2, 3):
        with kvstore.open(segment_size="16mb", namespace="n") as store:
            store_metrics.register(store, registry)
            store.get("absent")
            if total == 2:
                scrape(registry)  # while it is open, too: it is not counted twice
        found = scrape(registry)
        misses = exposition.value(found, "kvstore_store_misses_total", **OWN, reason="absent")
        assert misses == total


class Counted:
    """A store of another name, which counts one hit."""

    tenant = "t"
    closed = False

    def __init__(self, namespace: str, like: kvstore.Store) -> None:
        self.namespace = namespace
        self._like = like

    def counters(self) -> dict[str, object]:
        return {**self._like.counters(), "hits_shm": 1}


def test_many_namespaces_share_one_series(registry: CollectorRegistry) -> None:
    with kvstore.open(segment_size="16mb") as store:
        for number in range(store_metrics.MOST_STORES + 7):
            store_metrics.register(Counted(str(number), store), registry)
        hits = scrape(registry)["kvstore_store_hits_total"].samples
    shm = {labels: value for labels, value in hits.items() if ("path", "shm") in labels}
    assert len(shm) == store_metrics.MOST_STORES + 1
    assert shm[frozenset({("tenant", ""), ("namespace", ""), ("path", "shm")})] == 7


SERVING = """
import socket, sys, urllib.request
import kvstore
from kvstore import store_metrics
from kvstore.errors import InvalidArgumentError

for wrong in ("", "9400", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:99999", "192.0.2.1:9400"):
    try:
        store_metrics.serve(None, wrong)
    except InvalidArgumentError as error:
        print("refused", error)
with socket.create_server(("127.0.0.1", 0)) as taken, kvstore.open(segment_size="16mb") as store:
    first = taken.getsockname()[1]
    port = store_metrics.serve(store, f"127.0.0.1:{first}")
    assert first < port < first + 64, (first, port)
    assert store_metrics.serve(store, "127.0.0.1:1") == port
    store.get("absent")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        print(answer.read().decode())
"""


def test_a_process_serves_its_stores_at_the_next_free_port() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVING], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("refused") for line in done.stdout.splitlines()) == 6
    found = exposition.parse(done.stdout.partition("# HELP")[2].join(("# HELP", "")))
    names = {"tenant": "default", "namespace": ""}
    assert exposition.value(found, "kvstore_store_misses_total", reason="absent", **names) == 1


def test_an_integration_uses_a_store_whose_metrics_cannot_be_served(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with kvstore.open(segment_size="16mb") as store:
        _serve_metrics(store, "nowhere")
    assert "'nowhere' is not HOST:PORT" in caplog.text


def test_a_store_for_asyncio_is_exported_as_well(registry: CollectorRegistry) -> None:
    async def read() -> None:
        async with kvstore.AsyncStore(kvstore.open(segment_size="16mb", namespace="n")) as store:
            store_metrics.register(store, registry)
            await store.get("absent")
            assert (store.tenant, store.namespace) == ("default", "n")

    asyncio.run(read())
    found = scrape(registry)
    assert exposition.value(found, "kvstore_store_misses_total", **OWN, reason="absent") == 1


def test_every_counter_of_a_client_has_its_own_help() -> None:
    misses = {f"misses_{reason.value}" for reason in MissReason if reason.value != "none"}
    with kvstore.open(segment_size="16mb") as store:
        names = set(store._client.counters())
    of_the_store_alone = {"keys_sought", "keys_present"}
    assert names - misses - of_the_store_alone == set(CLIENT_HELP)
