"""Measures what replicas of hot objects gain: many readers of one chain, over shaped links.

`python -m bench.hot_objects` gives each of four nodes a network namespace of its own, whose link
sends no faster than --link-mbit, and reads one chain of objects with eight clients in four further
namespaces: without further replicas, then with. Prints JSON: bytes per second of all readers, in
links of one node. It needs root, ip and tc, and touches no interface of the host.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kvstore
from bench.processes import ROOT, Process, wait_for
from tests.support.network import Network
from tests.support.payloads import proof

NODES, READERS_PER_HOST = 4, 2
MASTER_PORT = 7051
SETTLE_S = 12.0  # for three further replicas, one after the other


def read_until(address: str, objects: int, size: int, deadline_s: float) -> None:
    """Be a reader: print the bytes read in each second."""
    keys = [f"chain/{i}" for i in range(objects)]
    with kvstore.connect(address, transport="tcp", timeout_ms=30_000) as store:
        memory = bytearray(objects * size)
        rows = [memoryview(memory)[i * size : (i + 1) * size] for i in range(objects)]
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            reasons: list[kvstore.MissReason] = []
            found = store.batch_get_into(keys, rows, reasons=reasons)
            assert found == [size] * objects, {*reasons}
            print(json.dumps([time.time(), objects * size]), flush=True)
        wanted = b"".join(proof(key, size) for key in keys)
        assert memory == wanted, "other bytes were read"


def measure(options: argparse.Namespace, hot_reads_per_s: int) -> dict[str, Any]:
    """Run a cluster and its readers once."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-hot-"))
    python = sys.executable
    size, objects = options.size, options.objects
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        network = stack.enter_context(Network(1 + 2 * NODES, folder))
        master = f"{network.address(0)}:{MASTER_PORT}"
        command = [python, "-m", "kvstore.cli.master", "--data-dir", str(folder / "master")]
        command += ["--host", network.address(0), "--port", str(MASTER_PORT)]
        command += ["--grpc-port", "0", "--http-port", "0"]
        stack.enter_context(Process("master", [*network.on(0), *command], folder))
        for host in range(1, 1 + NODES):
            config = folder / f"n{host}.json"
            values = {
                "master_address": master,
                "node_id": f"n{host}",
                "host": network.address(host),
                "http_port": 0,
                "segment_size": 2 * NODES * READERS_PER_HOST * size * objects,  # replies hold half
                "segment_dir": f"/dev/shm/{network.hosts[host]}",
                "labels": {"host": f"n{host}"},
                "hot_reads_per_s": hot_reads_per_s,
            }
            config.write_text(json.dumps(values))
            stack.callback(shutil.rmtree, values["segment_dir"], ignore_errors=True)
            command = [python, "-m", "kvstore.cli.node", "--config", str(config)]
            stack.enter_context(Process(f"n{host}", [*network.on(host), *command], folder))
        put = [python, "-m", "bench.hot_objects", "put", master, str(objects), str(size)]
        wait_for(lambda: subprocess.run([*network.on(0), *put], cwd=ROOT).returncode == 0, "a put")
        for host in range(1, 1 + NODES):
            network.shape(host, options.link_mbit)
        return read(network, master, options)


def read(network: Network, master: str, options: argparse.Namespace) -> dict[str, Any]:
    """Read with all clients; what they got once replicas had time to be made."""
    got: list[tuple[float, int]] = []
    seconds = SETTLE_S + options.seconds
    command = [sys.executable, "-m", "bench.hot_objects", "read", master]
    command += [str(options.objects), str(options.size), "--seconds", str(seconds)]
    readers = [
        subprocess.Popen(
            [*network.on(1 + NODES + i % NODES), *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(NODES * READERS_PER_HOST)
    ]

    def collect(reader: subprocess.Popen[str]) -> None:
        assert reader.stdout is not None
        for line in reader.stdout:
            got.append(tuple(json.loads(line)))

    threads = [threading.Thread(target=collect, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    time.sleep(SETTLE_S)
    first, before = time.time(), [network.sent(1 + i) for i in range(NODES)]
    time.sleep(options.seconds - 2)
    last, after = time.time(), [network.sent(1 + i) for i in range(NODES)]
    for thread, reader in zip(threads, readers, strict=True):
        thread.join()
        assert reader.wait() == 0, "a reader has failed"
    link = options.link_mbit * 1e6 / 8
    total = sum(size for at, size in got if first <= at < last) / (last - first)
    sent = [(b - a) / (last - first) for a, b in zip(before, after, strict=True)]
    return {
        "bytes_per_s": round(total),
        "links": round(total / link, 2),
        "sent_by_node": [round(one / link, 2) for one in sent],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command")
    for name in ("put", "read"):  # of the processes in the namespaces
        one = commands.add_parser(name)
        one.add_argument("address")
        one.add_argument("objects", type=int)
        one.add_argument("size", type=int)
        one.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--link-mbit", type=int, default=200)
    parser.add_argument("--objects", type=int, default=32, help="of the chain")
    parser.add_argument("--size", type=int, default=64 << 10, help="of an object, in bytes")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--hot-reads-per-s", type=int, default=2, help="as slow as the links are")
    options = parser.parse_args()
    if options.command == "put":
        keys = [f"chain/{i}" for i in range(options.objects)]
        with kvstore.connect(options.address, transport="tcp") as store:
            put = store.batch_put(keys, [proof(key, options.size) for key in keys])
        sys.exit(0 if all(put) else 1)
    if options.command == "read":
        return read_until(options.address, options.objects, options.size, options.seconds)
    rows = {
        "without replicas": measure(options, 0),
        "with replicas": measure(options, options.hot_reads_per_s),
    }
    print(json.dumps({"link_mbit": options.link_mbit, **rows}, indent=2))


if __name__ == "__main__":
    main()
