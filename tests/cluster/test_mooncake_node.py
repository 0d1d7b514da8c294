"""A Mooncake client that lends memory: a node of the cluster inside its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kvstore.compat.mooncake import ErrorCode, MooncakeDistributedStore
from tests.support.cluster import SHM, Cluster
from tests.support.payloads import proof
from tests.support.processes import python_process, read_line, wait_for

pytestmark = pytest.mark.cluster

ENGINE = """
import sys
from kvstore.compat.mooncake import MooncakeDistributedStore
store = MooncakeDistributedStore()
assert store.setup("localhost", "", 64 << 20, 0, "tcp", "", sys.argv[1]) == 0
assert store.put("k", b"from the engine") == 0
print(store.get_hostname(), flush=True)
for line in sys.stdin:
    if line.strip() == "fork":
        import os
        child = os.fork()
        if child == 0:
            os._exit(0 if store.put("c", b"x") < 0 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), store.get("k"), flush=True)
    elif line.strip() == "exit":
        break
"""


def lend(cluster: Cluster) -> MooncakeDistributedStore:
    store = MooncakeDistributedStore()
    assert store.setup("localhost:1234", "", 64 << 20, 0, "tcp", "", cluster.address) == 0
    return store


def files() -> list[Path]:
    """What a node of this kind would leave if it had files."""
    return [path for folder in (SHM, Path("/tmp")) for path in folder.glob("kvstore-localhost*")]


def test_engines_share_the_memory_that_they_lend(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = lend(cluster), lend(cluster)
    assert cluster.node_states() == {one.get_hostname(): "alive", two.get_hostname(): "alive"}
    assert one.get_hostname() != two.get_hostname()
    assert one.get_hostname().startswith("localhost-1234-")
    for i in range(20):
        assert one.put(f"k{i}", proof(f"k{i}", 100_000)) == 0
    for i in range(20):
        assert two.get(f"k{i}") == proof(f"k{i}", 100_000)
    over_tcp = cluster.connect(namespace="mooncake", transport="tcp")
    assert over_tcp.get("k0") == proof("k0", 100_000)
    assert files() == []
    one_id = one.get_hostname()
    assert one.close() == 0
    wait_for(lambda: cluster.node_states().get(one_id, "dead") == "dead", "the goodbye")
    assert caplog.text.count("its objects are lost when this process exits") == 2
    assert f"node {one_id} of this process left" in caplog.text
    assert two.put("more", b"x") == 0
    assert two.close() == 0


def test_it_leaves_when_the_interpreter_exits(cluster: Cluster) -> None:
    with python_process(ENGINE, cluster.address) as engine:
        node = read_line(engine)
        reader = cluster.connect(namespace="mooncake")
        assert reader.get("k") == b"from the engine"
        assert engine.stdin is not None
        engine.stdin.write("exit\n")
        engine.stdin.flush()
        assert engine.wait(20) == 0
        wait_for(
            lambda: cluster.node_states().get(node, "dead") == "dead", "the goodbye", timeout_s=2
        )
        assert reader.get("k") is None


def test_a_forked_child_leaves_it_alone(cluster: Cluster) -> None:
    with python_process(ENGINE, cluster.address) as engine:
        read_line(engine)
        assert engine.stdin is not None
        engine.stdin.write("fork\n")
        engine.stdin.flush()
        assert read_line(engine) == "0 b'from the engine'"
        engine.stdin.write("exit\n")
        engine.stdin.flush()
        assert engine.wait(20) == 0


def test_it_dies_with_its_process(cluster: Cluster) -> None:
    cluster.start_node("a")
    with python_process(ENGINE, cluster.address) as engine:
        node = read_line(engine)
        os.kill(engine.pid, signal.SIGKILL)
        engine.wait()
        reader = cluster.connect(namespace="mooncake", timeout_ms=2000)
        wait_for(
            lambda: cluster.node_states().get(node, "dead") == "dead", "the node to be dead", 20
        )
        assert reader.put("other", b"x").ok
        assert reader.get("other") == b"x"
    assert files() == []


def test_without_the_server_extra_it_says_what_to_do(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "kvstore.node.ephemeral", None)
    store = MooncakeDistributedStore()
    code = store.setup("localhost", "", 64 << 20, 0, "tcp", "", cluster.address)
    assert code == ErrorCode.UNAVAILABLE_IN_CURRENT_MODE
    assert "kvcache-store[server]" in caplog.text
    assert store.setup("localhost", "", 0, 0, "tcp", "", cluster.address) == 0
    store.close()
