"""The library at its edges: wrong arguments, truth values, reprs, objects as data, the exit."""

from __future__ import annotations

import array
import asyncio
import ctypes
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import kvstore
from kvstore import InvalidArgumentError, Status, Store

LONE = "\ud800"


async def connect_async(address: Any) -> object:
    return await kvstore.connect_async(address)


async def close(store: kvstore.AsyncStore) -> None:
    await store.close()


# --- truth ---


def test_a_status_is_true_where_readers_find_the_key(store: Store) -> None:
    first, second = store.put("k", b"1"), store.put("k", b"2")
    assert first and second and (first, second) == (Status.Ok, Status.AlreadyExists)
    assert {status for status in Status if status} == {Status.Ok, Status.AlreadyExists}
    assert int(Status.Ok) == 0 and not store.remove("nobody")


def test_a_reason_is_true_where_something_was_missed(store: Store) -> None:
    store.put("k", b"v")
    reasons: list[kvstore.MissReason] = []
    store.batch_get(["k", "nobody"], reasons=reasons)
    assert [bool(reason) for reason in reasons] == [False, True]
    assert not store.lookup(["k"]).reason


def test_a_missing_view_is_false_and_gives_none(store: Store) -> None:
    store.put("k", b"v")
    store.put("empty", b"")
    with store.view("nobody") as block:
        assert block is None
    missing, there, empty = (store.view(key) for key in ("nobody", "k", "empty"))
    assert not missing and there and empty
    assert (missing.size, missing.zero_copy, repr(missing)) == (0, False, "View(miss)")
    for view in (missing, there, empty):
        view.release()
        view.release()
    assert there, "it was found, also after the release"


# --- reprs ---


def test_a_repr_says_which_store_it_is() -> None:
    with kvstore.open("32mb", tenant="t", namespace="llama/bf16") as store:
        assert repr(store) == "<kvstore.Store embedded tenant='t' namespace='llama/bf16' nodes=1>"
        store.put("a", b"1")
        assert "length=1, reason=absent, leased=False" in repr(store.lookup(["a", "b"]))
        assert "length=1, reason=none" in repr(store.lookup(["a"], lease_ms=1000))
        both = kvstore.AsyncStore(store)
        assert repr(both) == repr(store).replace("Store", "AsyncStore")
        asyncio.run(close(both))
    assert "closed" in repr(store) and "llama/bf16" in repr(both)


# --- arguments ---


@pytest.mark.parametrize(
    ("address", "word"),
    [
        (None, "address"),
        (23051, "127.0.0.1:23051"),
        (b"127.0.0.1:1", "address"),
        ("", "empty"),
        ([], "empty"),
        (["127.0.0.1:1", None], "address"),
        ("127.0.0.1:port", "HOST:PORT"),
        ("two words", "HOST:PORT"),
        ("127.0.0.1:70000", "HOST:PORT"),
        ("http://127.0.0.1:9080", "http"),
        ({"127.0.0.1:1"}, "address"),
    ],
)
def test_a_wrong_address_is_named(address: Any, word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word):
        kvstore.connect(address)
    with pytest.raises(InvalidArgumentError, match=word):
        asyncio.run(connect_async(address))


WRONG: list[tuple[str, Any]] = [
    *[("tenant", wrong) for wrong in (None, 5, b"t", LONE, "a\nb", "")],
    *[("namespace", wrong) for wrong in (None, 5, LONE, "n" * 256)],
    *[("timeout_ms", wrong) for wrong in (None, -1, 0, 600_001, 2**70, "5", 1.5)],
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_open_and_connect_name_a_wrong_argument(store: Store, name: str, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        kvstore.open("32mb", **{name: wrong})
    with pytest.raises(InvalidArgumentError, match=name):
        kvstore.connect("127.0.0.1:1", **{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("token_file", 5),
        ("token_file", "a\0b"),
        ("transport", None),
        ("transport", []),
        ("stripes", None),
        ("stripes", -1),
        ("stripes", 17),
    ],
)
def test_connect_names_its_own_wrong_arguments(name: str, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        kvstore.connect("127.0.0.1:1", **{name: wrong})


@pytest.mark.parametrize("wrong", [None, "x", -1, 5, "1gbit", [], 1 << 10])
def test_open_names_a_wrong_segment_size(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="segment_size"):
        kvstore.open(wrong)


def test_open_names_a_wrong_folder() -> None:
    with pytest.raises(InvalidArgumentError, match="segment_dir"):
        kvstore.open("32mb", segment_dir=5)  # type: ignore[arg-type]


CALLS: list[Callable[[Any], object]] = [
    lambda store: store.put("k", None),
    lambda store: store.put("k", 5),
    lambda store: store.put("k", "text"),
    lambda store: store.put("k", b"v", replicas=None),
    lambda store: store.put("k", b"v", replicas=2**70),
    lambda store: store.put("k", b"v", pin=[]),
    lambda store: store.put("k", b"v", ttl_ms=-1),
    lambda store: store.put("k", b"v", ttl_ms="1"),
    lambda store: store.put("k", b"v", parent=5),
    lambda store: store.batch_put(None, None),
    lambda store: store.batch_put(["k"], b"v"),
    lambda store: store.batch_put(["k"], []),
    lambda store: store.batch_put({"k": 1}, [b"v"]),
    lambda store: store.batch_put_from(["k"], [None], [1]),
    lambda store: store.batch_put_from(["k"], [-1], [1]),
    lambda store: store.batch_put_from(["k"], [0], [1]),
    lambda store: store.get_into("k", b"read-only"),
    lambda store: store.get_into("k", None),
    lambda store: store.batch_get(5),
    lambda store: store.batch_get("keys"),
    lambda store: store.batch_get(["k"], reasons=()),
    lambda store: store.batch_get_into(["k"], [bytearray(1)], reasons={}),
    lambda store: store.batch_get_into_pointers(["k"], [2**70], [1]),
    lambda store: store.batch_exists(None),
    lambda store: store.batch_sizes(iter(["k"])),
    lambda store: store.prefix_length(["k"], stride=2**70),
    lambda store: store.prefix_length(["k"], stride=0),
    lambda store: store.prefix_length(["k"], stride=None),
    lambda store: store.lookup(["k"], stride="1"),
    lambda store: store.lookup(["k"], lease_ms=-1),
    lambda store: store.lookup(["k"], lease_ms=2**70),
    lambda store: store.lookup(["k"], wait_ms=-1),
    lambda store: store.lookup(["k"], wait_ms=1.5),
    lambda store: store.lookup(None, wait_ms=1),
    lambda store: store.prefetch(None),
    lambda store: store.batch_remove(None),
    lambda store: store.remove_prefix(None),
    lambda store: store.remove_prefix(LONE),
    lambda store: store.explain(None),
    lambda store: store.put_tensor("k", object()),
    lambda store: store.put_tensor("k", np.array([object()])),
    lambda store: store.get_tensor("k", kind="jax"),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_wrong_argument_of_a_call_is_the_callers_to_fix(store: Store, number: int) -> None:
    with pytest.raises(InvalidArgumentError):
        CALLS[number](store)

    async def awaited() -> None:
        await CALLS[number](kvstore.AsyncStore(store))  # type: ignore[misc]

    with pytest.raises(InvalidArgumentError):
        asyncio.run(awaited())
    assert store.get("k") is None


def test_a_wrong_prefix_of_keys_is_the_callers_to_fix(store: Store) -> None:
    for wrong in (None, 5, LONE, "p" * 1025):
        with pytest.raises(InvalidArgumentError, match="prefix"):
            list(store.keys(wrong))  # type: ignore[arg-type]


def test_integers_of_numpy_are_integers(store: Store) -> None:
    assert store.put("k", b"v", replicas=np.int64(1), ttl_ms=np.uint32(60_000)) is Status.Ok
    assert store.prefix_length(["k"], stride=np.int32(1)) == 1


# --- objects are no data ---


class _Pair(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("text", ctypes.c_char_p))


NOT_PLAIN: dict[str, Any] = {
    "objects": np.array([object(), object()]),
    "a field of objects": np.zeros(2, dtype=[("Ok", "f4"), ("what", "O")]),
    "a memoryview of objects": memoryview(cast(Any, np.array([object()]))),
    "py_object": (ctypes.py_object * 2)(),
    "pointers": (ctypes.POINTER(ctypes.c_int) * 2)(),
    "C strings": (ctypes.c_char_p * 2)(b"a", b"b"),
    "a structure with a C string": _Pair(1, b"a"),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_pointers_are_neither_stored_nor_overwritten(store: Store, what: str) -> None:
    wrong = NOT_PLAIN[what]
    with pytest.raises(InvalidArgumentError, match="objects or pointers"):
        store.put("k", wrong)
    with pytest.raises(InvalidArgumentError, match=r"buffers\[1\]"):
        store.batch_put(["a", "k"], [b"1", wrong])
    store.put("there", bytes(8))
    with pytest.raises(InvalidArgumentError, match="objects or pointers"):
        store.get_into("there", wrong)
    assert store.get("a") is None and store.get("k") is None


def test_plain_data_of_every_kind_is_stored(store: Store) -> None:
    import ml_dtypes

    class Inner(ctypes.Structure):
        _fields_ = (("Ozone", ctypes.c_float), ("Parts", ctypes.c_int * 3))

    plain: list[Any] = [
        array.array("d", [1.0]),
        np.zeros(3, np.complex64),
        np.array(["text"]),
        np.array([np.datetime64("2026-01-01")]),
        np.ones(4, ml_dtypes.bfloat16),
        np.zeros(2, dtype=[("Object", "f4"), ("Pointer", "i8", (2, 2))]),
        memoryview(cast(Any, np.zeros(2, dtype=[("O", "f4"), ("P", "f8")]))),
        Inner(),
        (ctypes.c_uint16 * 3)(1, 2, 3),
        np.float32(2.5),
        np.array([True, False]),
    ]
    for number, buffer in enumerate(plain):
        assert store.put(f"k/{number}", buffer), buffer
        data = store.get(f"k/{number}")
        want = buffer.tobytes() if hasattr(buffer, "tobytes") else bytes(buffer)
        assert data == want, buffer


# --- the way out ---


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "call",
    [
        "store.lookup(['never'], wait_ms=300)",
        "store.get('k')",
        "store.batch_get(['k'] * 100)",
        "store.put('k', bytes(100))",
        "store.stats()",
    ],
)
def test_daemon_threads_in_calls_do_not_disturb_the_exit(call: str) -> None:
    """They come back while the interpreter ends, at any step of it."""
    done = run(
        "import threading, kvstore\n"
        "store = kvstore.open('32mb')\n"
        "store.put('k', b'v')\n"
        "begun = threading.Semaphore(0)\n"
        "def calls():\n"
        "    begun.release()\n"
        "    try:\n"
        "        while True:\n"
        f"            {call}\n"
        "    except kvstore.ClosedError:\n"
        "        pass\n"
        "for _ in range(4):\n"
        "    threading.Thread(target=calls, daemon=True).start()\n"
        "for _ in range(4):\n"
        "    begun.acquire()\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_main_thread_leaks_is_still_reported() -> None:
    done = run(
        "import kvstore, kvstore._native\n"
        "store = kvstore.open('32mb')\n"
        "kvstore._native.leak(store._client)\n"
    )
    assert done.returncode == 0 and "leaked" in done.stderr
