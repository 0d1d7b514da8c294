"""Ctrl-C during calls that wait for a master or node that hangs: at once, and nobody is blamed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.processes import python_process, read_line, wait_for

pytestmark = pytest.mark.cluster

# Makes one call after another; each is to be interrupted long before its deadline of a minute.
CALLER = """
import sys, time, kvstore
address, transport, *calls = sys.argv[1:]
store = kvstore.connect(address, timeout_ms=60_000, transport=transport)
store.get("there")  # connected to everybody
print("connected")
sys.stdin.readline()
for call in calls:
    began = time.monotonic()
    try:
        print(call)
        print("returned", eval(call))
    except KeyboardInterrupt:
        print("interrupted", "late" if time.monotonic() - began > 8 else "soon")
sys.stdin.readline()
# Those who hung are there again: nobody was put aside for what was interrupted.
print(store.get("there"), store.put("after", b"x").name, store.exists("there"))
"""

AT_THE_MASTER = [
    "store.get('nobody')",
    "store.batch_get(['nobody', 'there'])",
    "store.put('new', b'v')",
    "store.put('new', bytes(8 << 20))",
    "store.exists('nobody')",
    "store.prefix_length(['nobody'])",
    "store.lookup(['nobody'], wait_ms=60_000)",
    "store.lookup(['nobody'], lease_ms=1000)",
    "store.view('nobody')",
    "store.prefetch(['nobody'])",
    "store.remove('there')",
    "store.unpin('there')",
    "store.inspect('there')",
    "list(store.keys())",
    "store.remove_prefix('there')",
    "store.flush()",
    "kvstore.connect(address, timeout_ms=60_000)",
]
AT_A_NODE = [
    "store.get('there')",
    "store.put('new', b'v')",
    "store.put('new', bytes(8 << 20))",
    "store.get_into('there', bytearray(8))",
    "store.view('there')",
]


def waits(pid: int) -> bool:
    """Whether the main thread sleeps in the kernel."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.mark.parametrize("transport", ["auto", "tcp"])
@pytest.mark.parametrize("hangs", ["master", "node"])
def test_ctrl_c_ends_a_call_at_once(cluster: Cluster, transport: str, hangs: str) -> None:
    node = cluster.start_node("a", segment_size="64mb")
    cluster.connect().put("there", b"v")
    calls = AT_THE_MASTER if hangs == "master" else AT_A_NODE
    if transport == "auto" and hangs == "node":
        calls = [call for call in calls if ".put(" in call]  # reads need nobody
    with python_process(CALLER, cluster.address, transport, *calls) as process:
        assert read_line(process) == "connected"
        hung = cluster.master if hangs == "master" else node
        hung.freeze()
        say(process)
        for call in calls:
            assert read_line(process) == call
            wait_for(lambda: waits(process.pid), f"{call} to wait")
            os.kill(process.pid, signal.SIGINT)
            assert read_line(process) == "interrupted soon", call
        hung.signal(signal.SIGCONT)
        cluster.wait_state("a", "alive")
        say(process)
        assert read_line(process) in (
            "b'v' Ok True",
            "None Ok False",  # a remove or flush that was interrupted may have been carried out
        )


HANDLER = """
import signal, sys, time, kvstore
store = kvstore.connect(sys.argv[1], timeout_ms=60_000)
def publish(number, frame):
    print("handled", store.put("awaited", b"v").name, store.get("there"))
signal.signal(signal.SIGUSR1, publish)
print("waiting")
print(store.lookup(["there", "awaited"], wait_ms=60_000).length)
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(9))
print("waiting")
store.lookup(["never"], wait_ms=60_000)
"""


def test_handlers_run_while_a_call_waits(cluster: Cluster) -> None:
    """One that returns lets the call go on, and may use the store; one that raises ends it."""
    cluster.start_node("a", segment_size="64mb")
    cluster.connect().put("there", b"v")
    with python_process(HANDLER, cluster.address) as process:
        assert read_line(process) == "waiting"
        wait_for(lambda: waits(process.pid), "the lookup to wait")
        os.kill(process.pid, signal.SIGUSR1)
        assert read_line(process) == "handled Ok b'v'"
        assert read_line(process) == "2"
        assert read_line(process) == "waiting"
        wait_for(lambda: waits(process.pid), "the lookup to wait")
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(20) == 9


def test_ctrl_c_ends_the_tool(cluster: Cluster) -> None:
    cluster.master.freeze()
    code = (
        "import sys\nfrom kvstore.cli.operator import main\nprint('calling')\nmain(sys.argv[1:])\n"
    )
    options = ["--master", cluster.address, "--timeout-ms", "60000"]
    for command in (["nodes"], ["get", "k"], ["ls"]):
        with python_process(code, *command, *options) as process:
            assert read_line(process) == "calling"
            wait_for(lambda: waits(process.pid), f"{command} to wait")
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(20) == 130


ASYNC = """
import asyncio, sys, kvstore
async def main():
    async with await kvstore.connect_async(sys.argv[1], timeout_ms=60_000) as store:
        await store.get("there")
        print("connected")
        sys.stdin.readline()
        print("waiting")
        await getattr(store, sys.argv[2])("nobody", *map(str.encode, sys.argv[3:]))
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("call", [["get"], ["exists"], ["remove"]])
def test_ctrl_c_ends_asyncio(cluster: Cluster, call: list[str]) -> None:
    """asyncio cancels the task, and the store's close ends the call that still waits."""
    cluster.start_node("a", segment_size="64mb")
    with python_process(ASYNC, cluster.address, *call) as process:
        assert read_line(process) == "connected"
        cluster.master.freeze()
        say(process)
        assert read_line(process) == "waiting"
        wait_for(lambda: waits(process.pid), "the loop to wait")
        os.kill(process.pid, signal.SIGINT)
        assert read_line(process) == "interrupted"
        assert process.wait(20) == 0
