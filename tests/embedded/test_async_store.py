"""AsyncStore on an embedded store: the same API, few threads, nothing that starves."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import kvstore
from kvstore import AsyncStore, Status, Store
from tests.support.coroutines import threads_named, until
from tests.support.payloads import proof
from tests.support.processes import wait_for

LONG_MS = 60_000


def run(test: Callable[[AsyncStore], Awaitable[None]], **options: Any) -> None:
    """Run a test's coroutine on a fresh store; its threads end with it."""

    async def opened() -> None:
        async with AsyncStore(kvstore.open("64mb"), **options) as store:
            await asyncio.wait_for(test(store), 60)
        assert store.closed

    before = set(threading.enumerate())  # one of an earlier test may be about to end
    asyncio.run(opened())
    wait_for(lambda: set(threading.enumerate()) <= before, "the threads to end", poll_s=0.005)
    assert not threads_named()


def waiting(store: AsyncStore) -> int:
    count: int = store._store.stats()["master"]["lookups_waiting_now"]
    return count


def public(cls: type) -> dict[str, Any]:
    found = {name: value for c in reversed(cls.__mro__) for name, value in vars(c).items()}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def test_every_call_of_a_store_is_there_with_the_same_arguments() -> None:
    assert public(Store).keys() == public(AsyncStore).keys()
    for name, method in public(Store).items():
        twin = public(AsyncStore)[name]
        assert inspect.getdoc(twin), name
        if not callable(method):
            continue
        ours = list(inspect.signature(method).parameters.values())[1:]
        theirs = list(inspect.signature(twin).parameters.values())[1:]
        assert [(p.name, p.kind, p.default) for p in theirs] == [
            (p.name, p.kind, p.default) for p in ours
        ], name


def test_the_calls_answer_like_a_stores() -> None:
    async def test(store: AsyncStore) -> None:
        assert await store.put("a", b"first") is Status.Ok
        assert await store.put("a", b"second", pin="soft") is Status.AlreadyExists
        assert await store.batch_put(["b", "c"], [b"2", b"33"], parent="a") == [Status.Ok] * 2
        assert await store.get("a") == b"first"
        assert await store.get("nobody") is None
        assert await store.batch_get(["a", "nobody"]) == [b"first", None]
        out = bytearray(8)
        assert await store.get_into("c", out) == 2 and out[:2] == b"33"
        assert await store.batch_get_into(["b", "nobody"], [out, out]) == [1, Status.NotFound]
        assert await store.exists("a") and not await store.exists("nobody")
        assert await store.batch_exists(["a", "nobody"]) == [True, False]
        assert (await store.size("c"), await store.size("nobody")) == (2, None)
        assert await store.prefix_length(["a", "b", "nobody"], stride=2) == 2
        inspected = await store.inspect("a")
        assert inspected is not None and inspected["size"] == 5
        assert sorted([key async for key in store.keys("")]) == ["a", "b", "c"]
        assert [key async for key in store.keys("b")] == ["b"]
        assert await store.remove("a") is Status.Ok
        assert await store.batch_remove(["a", "b"]) == [Status.NotFound, Status.Ok]
        assert await store.unpin("c") is Status.Ok
        assert await store.remove_prefix("") == 1
        assert await store.flush() is Status.Ok
        assert (await store.stats())["puts"] == {"ok": 3, "existing": 1, "failed": 0}

    run(test)


def test_what_a_caller_must_fix_is_raised() -> None:
    async def test(store: AsyncStore) -> None:
        with pytest.raises(kvstore.InvalidArgumentError, match="key"):
            await store.get("")
        with pytest.raises(kvstore.InvalidArgumentError, match="pin"):
            await store.put("k", b"x", pin="forever")  # type: ignore[arg-type]
        with pytest.raises(kvstore.InvalidArgumentError, match="wait_ms"):
            await store.lookup(["k"], wait_ms=-1)
        with pytest.raises(kvstore.InvalidArgumentError, match="stride"):
            await store.lookup(["k"], stride=0, wait_ms=LONG_MS)
        with pytest.raises(kvstore.InvalidArgumentError, match="lease_ms"):
            await store.lookup(["k"], lease_ms=0, wait_ms=LONG_MS)
        with pytest.raises(kvstore.InvalidArgumentError, match="key"):
            await store.lookup([""], wait_ms=LONG_MS)
        with pytest.raises(TypeError):
            await store.get()  # type: ignore[call-arg]

    run(test)
    for name in ("threads", "waiting_threads"):
        with (
            kvstore.open("32mb") as store,
            pytest.raises(kvstore.InvalidArgumentError, match=f"^{name}"),
        ):
            AsyncStore(store, **{name: 0})


def test_a_view_is_held_while_it_is_open() -> None:
    async def test(store: AsyncStore) -> None:
        value = proof("v", 1 << 20)
        await store.put("v", value)
        async with store.view("v") as block:
            assert block is not None and block.readonly
            assert await store.remove("v") is Status.Ok
            assert block == value
        with pytest.raises(ValueError, match="released"):
            bytes(block)
        async with store.view("v") as nothing:
            assert nothing is None
        with pytest.raises(kvstore.InvalidArgumentError):
            async with store.view(""):
                pass

    run(test)


def test_a_lookups_leases_end_with_it() -> None:
    async def test(store: AsyncStore) -> None:
        await store.batch_put(["a", "b"], [b"1", b"2"])
        async with await store.lookup(["a", "b", "c"], lease_ms=LONG_MS) as lookup:
            assert lookup.length == len(lookup) == 2 and await lookup.alive()
        assert not await lookup.alive()
        lookup = await store.lookup(["a", "b"], stride=2)
        assert lookup.length == 2 and not await lookup.alive()
        await lookup.release()

    run(test)


def test_a_thousand_calls_at_a_time_use_a_few_threads() -> None:
    async def test(store: AsyncStore) -> None:
        keys = [f"k/{i}" for i in range(1000)]
        before = threading.active_count() - len(threads_named())
        most = 0

        async def put_and_get(key: str) -> None:
            nonlocal most
            assert await store.put(key, proof(key, 3000)) is Status.Ok
            most = max(most, threading.active_count())
            assert await store.get(key) == proof(key, 3000)
            out = bytearray(3000)
            assert await store.get_into(key, out) == 3000
            assert out == proof(key, 3000)

        await asyncio.gather(*(put_and_get(key) for key in keys))
        assert before < most <= before + 4

    run(test)
    run(test, threads=1)


def test_waiting_lookups_hold_up_nobody() -> None:
    async def test(store: AsyncStore) -> None:
        keys = ["a", "b"]
        waits = [asyncio.ensure_future(store.lookup(keys, wait_ms=LONG_MS)) for _ in range(20)]
        await until(lambda: waiting(store) == 2, "as many to wait as have threads")
        for i in range(50):
            assert await store.put(f"other/{i}", b"x") is Status.Ok
        assert waiting(store) == 2
        assert await store.batch_put(keys, [b"1", b"2"]) == [Status.Ok] * 2
        assert [(await wait).length for wait in waits] == [2] * 20

    run(test, threads=1, waiting_threads=2)


def test_a_wait_goes_on_beyond_its_parts_and_leases() -> None:
    async def test(store: AsyncStore) -> None:
        lookup = asyncio.ensure_future(store.lookup(["a"], lease_ms=LONG_MS, wait_ms=LONG_MS))
        await until(lambda: waiting(store) == 1, "it to wait")
        await asyncio.sleep(1.2)
        assert not lookup.done()
        await store.put("a", b"1")
        async with await lookup as found:
            assert found.length == 1 and await found.alive()

    run(test)


def test_a_wait_whose_turn_never_comes_tells_what_is_there() -> None:
    async def test(store: AsyncStore) -> None:
        await store.put("a", b"1")
        first = asyncio.ensure_future(store.lookup(["b"], wait_ms=LONG_MS))
        await until(lambda: waiting(store) == 1, "the first to wait")
        second = await store.lookup(["a", "b"], wait_ms=50)
        assert second.length == 1 and not first.done()
        first.cancel()

    run(test, waiting_threads=1)


def test_a_cancelled_wait_gives_its_thread_back() -> None:
    async def test(store: AsyncStore) -> None:
        first = asyncio.ensure_future(store.lookup(["never"], wait_ms=LONG_MS))
        await until(lambda: waiting(store) == 1, "the first to wait")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await store.put("a", b"1")
        second = await asyncio.wait_for(store.lookup(["a"], wait_ms=LONG_MS), 20)
        assert second.length == 1

    run(test, waiting_threads=1)


def test_close_ends_the_calls_that_are_under_way() -> None:
    async def test(store: AsyncStore) -> None:
        waits = [asyncio.ensure_future(store.lookup(["never"], wait_ms=LONG_MS)) for _ in range(9)]
        puts = [asyncio.ensure_future(store.put(f"k/{i}", bytes(1000))) for i in range(300)]
        async with store.view("nobody"):
            await until(lambda: waiting(store) == 4, "lookups to wait")
            closes = [asyncio.ensure_future(store.close()) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(kvstore.ClosedError):
                await store.get("k")
            await asyncio.gather(*closes)
        assert not threads_named("kvstore_") and not threads_named("kvstore-wait")
        for outcome in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(outcome, kvstore.ClosedError)
        for put in await asyncio.gather(*puts, return_exceptions=True):
            assert isinstance(put, (Status, kvstore.ClosedError))
        for call in (store.get("k"), store.lookup(["k"]), store.lookup(["k"], wait_ms=LONG_MS)):
            with pytest.raises(kvstore.ClosedError):
                await call
        with pytest.raises(kvstore.ClosedError):
            async with store.view("k"):
                pass
        assert "closed" in repr(store) and (await store.stats())["puts"]["ok"] >= 0

    run(test)


def test_a_view_and_leases_outlive_the_store() -> None:
    async def test(store: AsyncStore) -> None:
        await store.put("k", b"bytes" * 1000)
        async with (
            await store.lookup(["k"], lease_ms=LONG_MS) as lookup,
            store.view("k") as block,
        ):
            await store.close()
            assert block is not None and bytes(block) == b"bytes" * 1000
            assert not await lookup.alive()

    run(test)


def test_a_forked_child_is_refused_and_ends() -> None:
    code = (
        "import asyncio, os, kvstore\n"
        "store = kvstore.AsyncStore(kvstore.open('32mb'))\n"
        "async def parent():\n"
        "    assert await store.put('k', b'v') is kvstore.Status.Ok\n"
        "async def child():\n"
        "    for call in (store.get('k'), store.lookup(['k'], wait_ms=60_000)):\n"
        "        try:\n"
        "            await call\n"
        "        except kvstore.ClosedError:\n"
        "            print('refused')\n"
        "    await store.close()\n"
        "asyncio.run(parent())\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    asyncio.run(child())\n"
        "    raise SystemExit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "async def after():\n"
        "    assert await store.get('k') == b'v'\n"
        "    await store.close()\n"
        "asyncio.run(after())\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "refused\nrefused\n"), done.stderr


def test_connect_async_names_what_is_wrong() -> None:
    async def test() -> None:
        with pytest.raises(kvstore.UnavailableError, match=r"127\.0\.0\.1:1"):
            await kvstore.connect_async("127.0.0.1:1", timeout_ms=300)
        with pytest.raises(kvstore.InvalidArgumentError, match="threads"):
            await kvstore.connect_async("127.0.0.1:1", threads=257)
        await until(lambda: not threads_named(), "the threads to end")

    asyncio.run(test())
