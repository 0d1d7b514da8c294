"""What a user's type checker sees of the installed package: mypy and pyright, both strict."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

Checker = Callable[[Path, Path], subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]

USER = '''
"""A user's script."""
from __future__ import annotations

import array
from typing import Any

import numpy as np
import numpy.typing as npt

import kvstore


class Tensor:
    """Stands for torch.Tensor: no buffer, but DLPack."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def use(store: kvstore.Store, page: npt.NDArray[np.float32], tensor: Tensor) -> bytes | None:
    status: kvstore.Status = store.put("k", page, replicas=2, pin="soft", ttl_ms=5)
    if not status and status.retryable:
        print(status.name, int(status))
    for buffer in (b"", bytearray(8), memoryview(b""), array.array("d"), page):
        store.put("k", buffer, upsert=True)
    statuses: list[kvstore.Status] = store.batch_put(["a", "b"], [page, b""], parent="k")
    store.put_tensor("t", tensor)
    store.put_tensor("t", page)
    written: int | None = store.get_into("k", page)
    sizes: list[int] = store.batch_get_into(["k"], [memoryview(bytearray(8))])
    queued: kvstore.Transfer = store.batch_get_into(["k"], [tensor], stream=7)
    sizes = queued.result(100)
    pool = kvstore.PagePool("page_first", [1, 2], layers=2, pages=3, page_tokens=4, token_bytes=5)
    sizes = store.batch_get_into_pages(["k"], pool, [0])
    queued = store.batch_get_into_pages(["k"], pool, [0], stream=object())
    reasons: list[kvstore.MissReason] = []
    found: list[bytes | None] = store.batch_get(["k"], reasons=reasons)
    with store.view("k") as block:
        if block is not None:
            np.frombuffer(block, np.uint8)
    with store.lookup(["k"], lease_ms=10, wait_ms=10) as lookup:
        length: int = lookup.length
    print(written, sizes, found, statuses, length, [key for key in store.keys()])
    inspected = store.inspect("k")
    print(inspected["size"] if inspected else None, store.stats()["hits"], store.closed)
    return store.get("k")


async def use_async(page: npt.NDArray[np.float32]) -> None:
    async with await kvstore.connect_async(["a:1", "b:2"], namespace="n") as store:
        status: kvstore.Status = await store.put("k", page, pin="hard")
        data: bytes | None = await store.get("k")
        async with store.view("k") as block:
            print(None if block is None else block.nbytes)
        async with await store.lookup(["k"]) as lookup:
            print(lookup.length, status, data)
        async for key in store.keys("p"):
            print(key.upper())


with kvstore.open(segment_size="64mb") as opened:
    use(opened, np.zeros(4, np.float32), Tensor())
with kvstore.connect("127.0.0.1", transport="tcp", stripes=2) as connected:
    try:
        connected.put("k", b"v")
    except kvstore.UnavailableError as error:
        print(error.status)
'''

WRONG = {
    'store.put("k", 5)': "put",
    "store.get(5)": "get",
    'store.put("k", b"v", pin="soft!")': "pin",
    'kvstore.connect("a", transport="udp")': "transport",
    "kvstore.connect(5)": "str | Sequence[str]",
    'store.view("k").__enter__()[0]': "None",
    "kvstore.nothing": "nothing",
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's environment: this tree's package and NumPy are installed in it."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "kvstore").symlink_to(ROOT / "kvstore")
    import numpy as np

    for package in ("numpy", "numpy.libs"):
        installed = Path(np.__file__).parent.with_name(package)
        if installed.exists():
            (site / package).symlink_to(installed)
    return folder / "bin/python"


def mypy(script: Path, python: Path) -> subprocess.CompletedProcess[str]:
    options = ["--strict", "--no-incremental", "--python-executable", str(python)]
    command = [sys.executable, "-m", "mypy", *options, "--config-file", "", script.name]
    return _run(command, script.parent)


def pyright(script: Path, python: Path) -> subprocess.CompletedProcess[str]:
    settings = {"typeCheckingMode": "strict", "include": [script.name]}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    program = Path(sysconfig.get_path("scripts")) / "basedpyright"
    return _run([str(program), "--pythonpath", str(python)], script.parent)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_script_is_typed(checker: Checker, python: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(USER)
    done = checker(script, python)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_mistakes_are_found(checker: Checker, python: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    lines = ["import kvstore", "def use(store: kvstore.Store) -> None:"]
    script.write_text("\n".join([*lines, *(f"    {call}" for call in WRONG)]) + "\n")
    done = checker(script, python)
    assert done.returncode == 1, done.stdout + done.stderr
    for number, (call, word) in enumerate(WRONG.items(), len(lines) + 1):
        found = [line for line in done.stdout.splitlines() if f"script.py:{number}:" in line]
        assert found and word in " ".join(found), (call, done.stdout)
