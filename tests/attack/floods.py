"""Hostile neighbours: each floods until its standard input ends. See neighbours.flood."""

from __future__ import annotations

import resource
import select
import socket
import sys
from collections import deque


def half_open(count: int, *ports: int) -> None:
    """Hold `count` connections to each port that say nothing; those that are closed come again."""
    held: dict[int, tuple[socket.socket, int]] = {}
    wanted = deque(port for port in ports for _ in range(count))
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    while True:
        while wanted:
            port = wanted.popleft()
            try:
                peer = socket.create_connection(("127.0.0.1", port), timeout=10)
            except OSError:  # this server has ended
                continue
            held[peer.fileno()] = (peer, port)
            poll.register(peer, select.POLLIN)
        begun()
        for descriptor, _ in poll.poll():  # refused, or closed
            if descriptor == sys.stdin.fileno():
                return
            peer, port = held.pop(descriptor)
            poll.unregister(descriptor)
            peer.close()
            wanted.append(port)


def namespaces(address: str, token_file: str, tenant: str) -> None:
    """Open one session after the other, each in a namespace of its own, and look for a key."""
    import kvstore

    number = 0
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    while not poll.poll(0):
        number += 1
        with kvstore.connect(
            address, tenant=tenant, namespace=f"flood-{number}", token_file=token_file
        ) as store:
            assert store.get("k") is None
        begun()


def begun() -> None:
    """Say once that the flood is there."""
    global _said
    if not _said:
        print("begun", flush=True)
    _said = True


_said = False

if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kind, *given = sys.argv[1:]
    if kind == "half_open":
        half_open(*map(int, given))
    else:
        namespaces(*given)
