"""Who waits for much keeps nobody else from waiting: removes, watches, lookups."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

import kvstore
from kvstore import Status
from kvstore._proto import master_pb2
from tests.attack.neighbours import ENGINE, LOUD, Guarded, assert_fair, flood, guarded, p99_ms
from tests.support.control import DEFAULT, control, lookups_waiting
from tests.support.processes import Daemon, wait_for

pytestmark = pytest.mark.cluster

_REMOVES = 160
_PATIENCE_MS = 8000


def threads(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.pid}/task"))


def cpu_s(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def remove(key: str) -> master_pb2.RemoveRequest:
    return master_pb2.RemoveRequest(namespace=DEFAULT, keys=[key], timeout_ms=_PATIENCE_MS)


def all_copied(store: kvstore.Store) -> bool:
    found = [store.inspect(f"k{i}") for i in range(_REMOVES)]
    return all(one is not None and len(one["replicas"]) == 2 for one in found)


def test_removes_that_wait_refuse_nobody_elses(tmp_path: Path) -> None:
    with guarded(tmp_path, principal_share=0.03, node_ttl_ms=60_000) as at:  # 122 of 4096
        at.start_node("a")
        with at.connect("engine") as store:
            assert store.put("mine", b"v") is Status.Ok  # on a alone
            b = at.start_node("b")
            for i in range(_REMOVES):
                assert store.put(f"k{i}", b"v", replicas=2) is Status.Ok
            copied = partial(all_copied, store)
            wait_for(copied, "every object to lie on both nodes", 30, poll_s=0.2)
            base_ms = p99_ms(store, "base")
            before = threads(at.cluster.master)
            b.freeze()
            try:
                waiting_removes(at, store, before, base_ms)
            finally:
                b.signal(signal.SIGCONT)


def waiting_removes(at: Guarded, store: kvstore.Store, threads_before: int, base_ms: float) -> None:
    master = at.cluster.master
    with control(master, f"loud:{LOUD}") as loud, control(master, f"engine:{ENGINE}") as engine:
        call = {**loud.call, "timeout": 60}
        calls = [loud.master.Remove.future(remove(f"k{i}"), **call) for i in range(_REMOVES)]
        wait_for(lambda: sum(one.done() for one in calls) >= _REMOVES - 122, "some to be refused")
        refused = [one for one in calls if one.done()]
        assert len(refused) == _REMOVES - 122
        for one in refused:
            assert one.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "principal loud" in one.details() and "principal_share" in one.details()
        began = time.monotonic()
        assert list(engine.master.Remove(remove("mine"), **engine.call).statuses) == [0]
        assert time.monotonic() - began < _PATIENCE_MS / 2000
        assert threads(master) <= threads_before + 12, "waiting calls hold threads"
        assert_fair(base_ms, p99_ms(store, "beside"), "removes that wait")
        waited = {one.result().statuses[0] for one in calls if one not in refused}
        assert waited == {int(Status.Partial)}


def test_watches_leave_room_for_others_and_wake_by_events(tmp_path: Path) -> None:
    with guarded(tmp_path, principal_share=0.25) as at:  # 64 of 256
        at.start_node("a")
        master = at.cluster.master
        with (
            control(master, f"loud:{LOUD}") as loud,
            control(master, f"engine:{ENGINE}") as engine,
            at.connect("engine") as store,
        ):
            base_ms = p99_ms(store, "base")
            request = master_pb2.WatchRequest(namespace=DEFAULT)
            with flood("watches", master.ports["grpc"], f"loud:{LOUD}", 64):
                with pytest.raises(grpc.RpcError) as refused:
                    next(loud.master.Watch(request, **loud.call))
                assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "principal loud has 64 watchers" in str(refused.value.details())
                assert "principal_share" in str(refused.value.details())
                mine = engine.master.Watch(request, **engine.call)
                assert next(mine).resync
                before = cpu_s(master)
                time.sleep(2)  # of nothing to tell
                print(f"65 idle watches: {(cpu_s(master) - before) / 2 * 100:.0f} % of a core")
                began = time.monotonic()
                assert store.put("k", b"v") is Status.Ok
                assert [event.key for event in next(mine).events] == ["k"]
                print(f"an event took {(time.monotonic() - began) * 1000:.1f} ms")
                assert_fair(base_ms, p99_ms(store, "beside"), "watches")
            again = partial(watch_opens, loud.master, request, loud.call)
            wait_for(again, "a place to be free again")


def watch_opens(plane: Any, request: master_pb2.WatchRequest, call: dict[str, Any]) -> bool:
    watch = plane.Watch(request, **call)
    try:
        return bool(next(watch).resync)
    except grpc.RpcError:
        return False
    finally:
        watch.cancel()


def test_lookups_that_wait_leave_room_for_others(tmp_path: Path) -> None:
    with guarded(tmp_path, principal_share=0.005) as at:  # 20 of 4096
        at.start_node("a")
        master = at.cluster.master
        with (
            at.connect("loud") as loud,
            at.connect("engine") as store,
            ThreadPoolExecutor(31) as pool,
        ):
            floods = [pool.submit(loud.lookup, [f"k{i}"], wait_ms=60_000) for i in range(30)]
            # Each of them takes a session, too: 17 of the 3584.
            wait_for(lambda: sum(one.done() for one in floods) == 13, "some to be refused")
            wait_for(lambda: lookups_waiting(master) == 17, "the others to wait")
            mine = pool.submit(store.lookup, ["mine"], wait_ms=60_000)
            wait_for(lambda: lookups_waiting(master) == 18, "mine to wait, too")
            assert store.put("mine", b"v") is Status.Ok
            assert mine.result(10).length == 1
            for i in range(30):
                assert store.put(f"k{i}", b"v") is Status.Ok
            assert sum(one.result(10).length for one in floods) == 17
