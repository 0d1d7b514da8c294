"""The master's disk is full: nothing waits in vain, nothing is half done, nothing is forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore import Status, Store
from tests.support.cluster import Cluster
from tests.support.control import ready
from tests.support.mounts import fill, small_tmpfs
from tests.support.processes import wait_for

pytestmark = pytest.mark.cluster

_KEYS = [f"key/{number:05}/{'x' * 200}" for number in range(4000)]
_BATCH = 50
_AT_ONCE_S = 3.0
"""On a busy machine; a call that waits in vain takes its whole timeout of 30 s."""


def remove_until_refused(store: Store) -> tuple[list[str], list[str]]:
    """Remove keys until some are refused; those that are gone, and those that must still be there.

    A batch is let in or refused as a whole.
    """
    done = 0
    for count in (_BATCH, 1):
        while done + count <= len(_KEYS):
            began = time.monotonic()
            statuses = set(store.batch_remove(_KEYS[done : done + count]))
            assert time.monotonic() - began < _AT_ONCE_S
            if statuses == {Status.NoSpace}:
                break
            assert statuses == {Status.Ok}
            done += count
    assert done < len(_KEYS), "the disk is full, but every remove was let in"
    return _KEYS[:done], _KEYS[done:]


def test_removes_are_refused_at_once_or_last(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "master", "3m") as disk:
        cluster = Cluster(tmp_path)
        try:
            node = cluster.start_node("a", keep_segment=True)
            cluster.start_node("b").kill()  # its tombstones stay in the log until it returns
            store = cluster.connect(timeout_ms=30_000)
            assert set(store.batch_put(_KEYS, [key.encode() for key in _KEYS])) == {Status.Ok}
            cluster.wait_state("b", "dead")
            fill(disk)
            removed, kept = remove_until_refused(store)
            assert len(removed) > 200  # what the reserve inside the state's file is for
            refused_without_effect(store, kept)
            assert "full" in ready(cluster.master)[1]["journal_full"]
            cluster.master.kill()
            cluster.restart_master()
            cluster.wait_state("a", "alive")
            cluster.start_node("b")
            assert node.process.poll() is None
            fresh = cluster.connect(timeout_ms=30_000)
            wait_for(lambda: fresh.get(kept[0]), "the objects to be known again")
            found = fresh.batch_get(_KEYS)
            assert found == [None] * len(removed) + [key.encode() for key in kept]
            (disk / "other").unlink()
            wait_for(lambda: fresh.remove(kept[0]) is Status.Ok, "room for a remove")
            assert fresh.get(kept[0]) is None
            assert "no_room_for_operations" in cluster.logs()
        finally:
            cluster.close()


def refused_without_effect(store: Store, kept: list[str]) -> None:
    """Every call that would have to be written is refused; everything else goes on."""
    calls: list[Callable[[], Status]] = [
        lambda: store.remove(kept[0]),
        lambda: store.flush(),
        lambda: store.unpin(kept[0]),
        lambda: store.put(kept[0], b"another", upsert=True),
    ]
    for call in calls:
        began = time.monotonic()
        assert call() is Status.NoSpace
        assert time.monotonic() - began < _AT_ONCE_S
    assert store.get(kept[0]) == kept[0].encode()
    assert store.put("new", b"value") is Status.Ok
    assert store.get("new") == b"value"
