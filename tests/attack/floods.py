"""Hostile neighbours: each floods until its standard input ends. See neighbours.flood."""

from __future__ import annotations

import os
import resource
import select
import socket
import sys
import threading
from collections import deque
from typing import Any


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


def watches(address: str, token: str, count: str) -> None:
    """Hold streams of events, and read them."""
    import grpc

    from kvstore._proto import master_pb2, types_pb2
    from kvstore._proto.master_pb2_grpc import MasterStub

    request = master_pb2.WatchRequest(namespace=types_pb2.Namespace(tenant="default"))
    metadata = (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address) as channel:
        streams = [MasterStub(channel).Watch(request, metadata=metadata) for _ in range(int(count))]
        readers = [threading.Thread(target=drain, args=(one,)) for one in streams]
        for one in streams:
            next(one)
        for reader in readers:
            reader.start()
        begun()
        sys.stdin.read()
        for one in streams:
            one.cancel()


def drain(stream: Any) -> None:
    import grpc

    try:
        for _ in stream:
            pass
    except grpc.RpcError:
        return


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
    os.nice(15)  # what it costs the servers counts, not what it takes from this machine
    kind, *given = sys.argv[1:]
    if kind == "half_open":
        half_open(*map(int, given))
    elif kind == "watches":
        watches(*given)
    else:
        namespaces(*given)
