"""A client of its own process that puts, gets and verifies at a steady pace until told to stop.

`python -m tests.fault.paced --master HOST:PORT --transport tcp` writes one line of JSON at its end,
which comes when its standard input is closed. `Paced` runs it.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kvstore
from tests.support.payloads import proof

ROOT = Path(__file__).resolve().parents[2]
BYTES = 4 << 10
GETS_PER_PUT = 4
KNOWN = 400
"""Keys that are read: the newest ones."""


def drive(store: kvstore.Store, name: str, rate: float) -> dict[str, Any]:
    """Put and get until standard input ends; what was seen."""
    random.seed(name)
    gets: list[tuple[float, float, bool]] = []
    puts: list[float] = []
    failed_puts: list[str] = []
    wrong_bytes = 0
    known: list[str] = []
    begin = time.monotonic()
    for turn in range(1 << 60):
        wait_s = max(0.0, begin + turn / rate - time.monotonic())
        if select.select([sys.stdin], [], [], wait_s)[0]:
            break
        started = time.monotonic()
        if turn % (GETS_PER_PUT + 1) == 0:
            key = f"{name}/{turn}"
            status = store.put(key, proof(key, BYTES))
            puts.append(time.monotonic() - started)
            if status.name == "Ok":
                known = [*known[1 - KNOWN :], key]
            else:
                failed_puts.append(status.name)
            continue
        key = random.choice(known)
        found = store.get(key)
        gets.append((started - begin, time.monotonic() - started, found is not None))
        wrong_bytes += found is not None and bytes(found) != proof(key, BYTES)
    took_s = sorted(one[1] for one in gets)
    return {
        "gets": len(gets),
        "misses": sum(not one[2] for one in gets),
        "worst_get_ms": round(took_s[-1] * 1e3, 1),
        "p999_get_ms": round(took_s[int(0.999 * len(took_s))] * 1e3, 1),
        "worst_gets": [
            (round(at, 2), round(took * 1e3, 1), hit)
            for at, took, hit in sorted(gets, key=lambda one: -one[1])[:5]
        ],
        "puts": len(puts),
        "worst_put_ms": round(max(puts) * 1e3, 1),
        "failed_puts": len(failed_puts),
        "failures": sorted(set(failed_puts)),
        "wrong_bytes": wrong_bytes,
        "begin": begin,
    }


class Paced:
    """Such a process."""

    def __init__(self, address: str, transport: str, rate: float) -> None:
        self.transport = transport
        arguments = ["--master", address, "--transport", transport, "--rate", str(rate)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.paced", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "begun\n", f"the {transport} client did not begin"

    def stop(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Return what it has seen."""
        said, _ = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, f"the {self.transport} client failed"
        seen: dict[str, Any] = json.loads(said)
        return seen

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def paced(address: str, transports: tuple[str, ...], rate: float) -> Iterator[list[Paced]]:
    """Run one for each transport; none is left at the end."""
    running: list[Paced] = []
    try:
        for transport in transports:
            running.append(Paced(address, transport, rate))
        yield running
    finally:
        for one in running:
            one.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--master", required=True)
    parser.add_argument("--transport", choices=("auto", "tcp"), required=True)
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second")
    given = parser.parse_args()
    with kvstore.connect(given.master, transport=given.transport, timeout_ms=5000) as store:
        assert store.put(f"paced/{given.transport}", b"begun").name == "Ok"
        print("begun", flush=True)
        print(json.dumps(drive(store, f"paced/{given.transport}", given.rate)), flush=True)


if __name__ == "__main__":
    main()
