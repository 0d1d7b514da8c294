"""Follow a master's events with many streams; a line of JSON for each line on stdin.

``python -m bench.scale.watchers ADDRESS COUNT``: streams of the control plane at ADDRESS, without a
filter. Each answer is how many streams are open, and what came since the last line.
"""

from __future__ import annotations

import asyncio
import json
import sys

import grpc

from kvstore._proto import master_pb2, master_pb2_grpc

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))


class Watchers:
    """Open streams, and counts of what they have brought."""

    def __init__(self) -> None:
        self._counts = {"open": 0, "replies": 0, "events": 0, "resyncs": 0, "failed": 0}

    async def follow(self, address: str) -> None:
        """Follow one stream until it is cancelled."""
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            stub = master_pb2_grpc.MasterStub(channel)
            self._counts["open"] += 1
            try:
                async for reply in stub.Watch(master_pb2.WatchRequest()):
                    self._counts["replies"] += 1
                    self._counts["events"] += len(reply.events)
                    self._counts["resyncs"] += reply.resync
            except grpc.aio.AioRpcError:
                self._counts["failed"] += 1
            finally:
                self._counts["open"] -= 1

    def take(self) -> dict[str, int]:
        """Return the counts, and begin again."""
        taken = dict(self._counts)
        self._counts.update(replies=0, events=0, resyncs=0, failed=0)
        return taken


async def main(address: str, count: int) -> None:
    """Serve stdin until it ends."""
    watchers = Watchers()
    streams = [asyncio.create_task(watchers.follow(address)) for _ in range(count)]
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(watchers.take()), flush=True)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
