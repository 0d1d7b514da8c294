"""open() ends with its process, however that ends, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kvstore
from kvstore import Status
from tests.support.processes import python_process, read_line, wait_for


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def abstract_sockets(pid: int) -> list[str]:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in lines if f"@kvstore-{pid}-" in line]


def test_close_ends_threads_and_sockets() -> None:
    before = set(os.listdir("/proc/self/task"))  # some may be of an earlier test, and about to end
    store = kvstore.open("32mb")
    assert abstract_sockets(os.getpid())
    store.put("k", b"v")
    store.close()
    store.close()
    assert not abstract_sockets(os.getpid())
    wait_for(lambda: set(os.listdir("/proc/self/task")) <= before, "the threads to end")
    for call in (
        lambda: store.get("k"),
        lambda: store.put("k", b"x"),
        lambda: store.prefix_length(["k"]),
        lambda: store.view("k"),
        lambda: store.remove("k"),
        lambda: list(store.keys()),
        lambda: store.inspect("k"),
        lambda: store.lookup(["k"], lease_ms=100),
        lambda: store.register(bytearray(1)),
    ):
        with pytest.raises(kvstore.ClosedError):
            call()
    assert store.closed and store.stats()["puts"]["ok"] == 1


def test_a_dropped_store_is_closed() -> None:
    store = kvstore.open("32mb")
    store.put("k", b"v")
    del store
    gc.collect()
    assert not abstract_sockets(os.getpid())


def test_two_stores_in_one_process_are_strangers() -> None:
    with kvstore.open("32mb") as one, kvstore.open("32mb") as two:
        one.put("k", b"1")
        assert two.get("k") is None
        two.put("k", b"2")
        assert (one.get("k"), two.get("k")) == (b"1", b"2")


def test_a_view_outlives_the_store() -> None:
    store = kvstore.open("32mb")
    store.put("k", b"bytes" * 1000)
    view = store.view("k")
    with view as block:
        store.close()
        assert block is not None and block == b"bytes" * 1000


def test_a_process_that_forgets_to_close_ends_well() -> None:
    done = run(
        "import kvstore\n"
        "store = kvstore.open('32mb')\n"
        "store.put('k', b'v')\n"
        "lookup = store.lookup(['k'], lease_ms=500)\n"
        "view = store.view('k')\n"
        "block = view.__enter__()\n"
        "print('done')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_exception_on_the_way_out_ends_well() -> None:
    done = run("import kvstore\nstore = kvstore.open('32mb')\nraise SystemExit(3)\n")
    assert (done.returncode, done.stderr) == (3, "")


def test_kill_leaves_nothing_behind() -> None:
    seen = set(os.listdir("/dev/shm")), set(os.listdir("/tmp"))
    code = (
        "import os, sys, kvstore\n"
        "store = kvstore.open('32mb')\n"
        "store.put('k', b'v')\n"
        "print(os.getpid())\n"
        "sys.stdin.readline()\n"
    )
    with python_process(code) as process:
        pid = int(read_line(process))
        assert abstract_sockets(pid)
        os.kill(pid, signal.SIGKILL)
        process.wait()
    assert not abstract_sockets(pid)
    left = set(os.listdir("/dev/shm")) - seen[0]
    assert not [name for name in left if str(pid) in name]
    assert not [name for name in set(os.listdir("/tmp")) - seen[1] if f"-{pid}-" in name]


def test_a_forked_child_is_refused_and_harms_nothing() -> None:
    done = run(
        "import os, sys, kvstore\n"
        "store = kvstore.open('32mb')\n"
        "store.put('k', b'v')\n"
        "view = store.view('k')\n"
        "block = view.__enter__()\n"
        "lookup = store.lookup(['k'], lease_ms=60_000)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        store.get('k')\n"
        "    except kvstore.ClosedError:\n"
        "        assert store.closed and bytes(block) == b'v'\n"
        "        view.release(); lookup.release(); store.close()\n"
        "        with kvstore.open('32mb') as own:\n"
        "            own.put('mine', b'1')\n"
        "            assert own.get('mine') == b'1'\n"
        "        sys.exit(7)\n"  # the whole way out of the interpreter
        "    os._exit(1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "assert os.waitstatus_to_exitcode(status) == 7, status\n"
        "assert store.get('k') == b'v' and lookup.alive and bytes(block) == b'v'\n"
        "assert store.put('k2', b'v2').name == 'Ok'\n"
        "print('fine')\n"
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_segment_dir_keeps_files_until_close(tmp_path: Path) -> None:
    with kvstore.open("32mb", segment_dir=tmp_path) as store:
        assert store.put("k", bytes(1 << 20)) is Status.Ok
        names = {path.name for path in tmp_path.iterdir()}
        assert "segment" in names
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"segment_size": "much"}, "segment_size"),
        ({"segment_size": -1}, "segment_size"),
        ({"segment_size": 0}, "segment_size"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "t" * 256}, "tenant"),
        ({"namespace": "n" * 256}, "namespace"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(kvstore.InvalidArgumentError, match=word):
        kvstore.open(**arguments)  # type: ignore[arg-type]
    assert not abstract_sockets(os.getpid())


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(kvstore.NoSpaceError):
        kvstore.open("900tb")
    assert not abstract_sockets(os.getpid())


def test_connect_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(kvstore.UnavailableError, match=r"127\.0\.0\.1:1"):
        kvstore.connect("127.0.0.1:1", timeout_ms=300)
    with pytest.raises(kvstore.InvalidArgumentError, match="transport"):
        kvstore.connect("127.0.0.1:1", transport="pigeon")  # type: ignore[arg-type]
    for stripes in (0, 17, "2"):
        with pytest.raises(kvstore.InvalidArgumentError, match="stripes must be 1 to 16"):
            kvstore.connect("127.0.0.1:1", stripes=stripes)  # type: ignore[arg-type]
    for address in ("no port", "", [], [5]):
        with pytest.raises(kvstore.InvalidArgumentError):
            kvstore.connect(address, timeout_ms=300)  # type: ignore[arg-type]
    with pytest.raises(kvstore.InvalidArgumentError, match="token file"):
        kvstore.connect("127.0.0.1:1", token_file=tmp_path / "none")
