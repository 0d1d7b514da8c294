"""`import kvstore` loads the native core and the standard library, nothing else."""

import subprocess
import sys

CODE = """
import sys
before = set(sys.modules)
import kvstore
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = sorted(loaded - set(sys.stdlib_module_names) - {"kvstore"})
servers = sorted(
    name for name in sys.modules
    if name.startswith(("kvstore.master", "kvstore.node", "kvstore.cli.", "kvstore._proto"))
)
print(foreign, servers)
"""


def test_import_loads_no_third_party_module() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[] []", done.stdout


def test_import_does_no_io_and_starts_no_thread() -> None:
    code = (
        "import os, kvstore\n"
        "print(len(os.listdir('/proc/self/task')), sorted(\n"
        "    os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')\n"
        "    if os.path.exists(f'/proc/self/fd/{fd}') and int(fd) > 2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "1 []", done.stdout


def test_asyncio_is_loaded_when_it_is_asked_for() -> None:
    code = (
        "import sys, kvstore\n"
        "assert 'asyncio' not in sys.modules\n"
        "assert 'AsyncStore' in kvstore.__all__ and not hasattr(kvstore, 'AsyncShop')\n"
        "kvstore.AsyncStore, kvstore.connect_async\n"
        "assert 'asyncio' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
