"""What a process pays and leaves: without CUDA memory, at its exit, in a forked child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.fake_cuda import build

PREAMBLE = """
import os, sys, threading, time
import kvstore
from tests.gpu.fake_cuda import FakeCuda
from tests.support.payloads import proof
cuda = FakeCuda(sys.argv[1])
store = kvstore.open(segment_size="64mb", timeout_ms=5000)
data = proof("a", 100_000)
store.put("a", data)
out = cuda.array(100_000)
"""


def run(library: Path | str, program: str, timeout_s: float = 30) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(library)],
        env={**os.environ, "KVSTORE_CUDA_LIB": str(library)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_without_cuda_memory_no_driver_is_loaded(fake_library: Path) -> None:
    said = run(
        fake_library,
        """
import os, sys
import kvstore
def mapped():
    with open("/proc/self/maps") as maps:
        return "cuda" in maps.read()
with kvstore.open(segment_size="64mb") as store:
    store.put("a", b"1" * 100000)
    store.put("b", bytearray(10))
    threads = set(os.listdir("/proc/self/task"))
    assert store.get_into("a", bytearray(100000)) == 100000
    assert store.batch_get_into(["a"], [bytearray(100000)]) == [100000]
    for wrong in (None, 1, object(), [1]):
        for call in (store.put, store.get_into):
            try:
                call("a", wrong)
            except kvstore.InvalidArgumentError as error:
                assert "buffer protocol" in str(error), error
            else:
                raise AssertionError(wrong)
    assert set(os.listdir("/proc/self/task")) <= threads
    assert not mapped()
print("fine")
""",
    )
    assert said == "fine\n"


def test_without_a_driver_cuda_memory_is_unsupported() -> None:
    said = run(
        "/nowhere/libcuda.so.1",
        """
import kvstore
class Array:
    __cuda_array_interface__ = {
        "shape": (8,), "typestr": "|u1", "data": (4096, False), "version": 3, "strides": None
    }
with kvstore.open(segment_size="64mb") as store:
    for call in (store.put, store.get_into):
        try:
            call("a", Array())
        except kvstore.UnsupportedError as error:
            assert "KVSTORE_CUDA_LIB" in str(error), error
        else:
            raise AssertionError(call)
    assert store.put("a", b"1") and store.get("a") == b"1"
print("fine")
""",
    )
    assert said == "fine\n"


@pytest.mark.parametrize("version", [11, 12])
def test_older_drivers(tmp_path: Path, version: int) -> None:
    """CUDA 12.8 has another batched copy, older ones have none."""
    program = """
keys = [f"k{i}" for i in range(20)]
datas = [proof(key, 5000) for key in keys]
stream = cuda.stream()
assert all(store.batch_put(keys, [cuda.array(5000).write(d) for d in datas], stream=stream))
outs = [cuda.array(5000) for _ in keys]
assert store.batch_get_into(keys, outs, stream=stream).result(5000) == [5000] * 20
assert [one.content() for one in outs] == datas
print(cuda.count("batches"), cuda.count("violations"))
store.close()
"""
    said = run(build(tmp_path, version), PREAMBLE + program)
    assert said == ("0 0\n" if version == 11 else "2 0\n")


@pytest.mark.parametrize(
    "end",
    [
        "store.close()",
        "",
        "del store, transfer",
        "threading.Thread(target=transfer.result, daemon=True).start()",
    ],
    ids=["closed", "left open", "dropped", "waited for"],
)
def test_copies_that_are_never_made_do_not_stop_the_exit(fake_library: Path, end: str) -> None:
    program = f"""
cuda.pause()
transfer = store.get_into("a", out, stream=cuda.stream())
assert not transfer.done
print("fine", flush=True)
{end}
"""
    assert run(fake_library, PREAMBLE + program, timeout_s=20) == "fine\n"


def test_a_forked_child_uses_no_gpu_memory(fake_library: Path) -> None:
    program = """
transfer = store.get_into("a", out, stream=cuda.stream())
assert transfer.result(5000) == [100_000]
calls = cuda.count("calls:cuMemcpyHtoDAsync")
child = os.fork()
if child == 0:
    try:
        store.get_into("a", out)
    except kvstore.ClosedError:
        pass
    else:
        os._exit(1)
    with kvstore.open(segment_size="64mb") as own:
        own.put("a", data)
        try:
            own.get_into("a", out)
        except kvstore.UnsupportedError as error:
            os._exit(0 if "forked" in str(error) else 2)
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.get_into("a", out) == 100_000
print("fine")
store.close()
"""
    assert run(fake_library, PREAMBLE + program) == "fine\n"
