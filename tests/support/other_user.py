"""Client processes that see less of this host: another user, or a container's view of its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
GROUP = 54321
"""Neither needs an entry in the user database."""

# Writes and reads an object with two stores, many times; prints what it saw and what was logged.
CLIENT = """
import json, logging, os, sys
import kvstore

class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

lines, answers, peers, stats = [], [], [], {}
logging.getLogger("kvstore").addHandler(Keep())
address, key, options, groups = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
if groups:  # only now: another user may not be able to read this environment
    os.setgroups(groups[1:])
    os.setresgid(*groups[:1] * 3)
    os.setresuid(*groups[:1] * 3)
for number in range(2):
    with kvstore.connect(address, **options) as store:
        answers.append(store.put(f"{key}/{number}", key.encode() * 1000).name)
        for _ in range(20):
            assert store.get(f"{key}/{number}") == key.encode() * 1000
        peers, stats = store.peers(), store.stats()
print(json.dumps({"lines": lines, "answers": answers, "peers": peers, "stats": stats}))
"""


def run_client(
    address: str,
    key: str,
    *,
    user: int | None = None,
    groups: Sequence[int] = (),
    shell: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Run that client to its end and return what it printed.

    Args:
        address: of the master.
        key: prefix of its objects.
        user: id of its user and group; None: this process's.
        groups: supplementary groups of that user.
        shell: commands that run before it, as root in namespaces of its own.
        options: of kvstore.connect.
    """
    identity = [] if user is None else [user, *groups]
    command = [sys.executable, "-c", CLIENT, address, key]
    command += [json.dumps(options), json.dumps(identity)]
    if shell:
        command = ["unshare", "-m", "-p", "-f", "sh", "-ec", f'{shell}\nexec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["answers"] == ["Ok", "Ok"]
    return answer


@contextmanager
def open_folder() -> Iterator[Path]:
    """Create a folder that every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="kvs-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def needs_another_user() -> None:
    """Skip the test where this process cannot start one of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root starts processes of another user")


def needs_namespaces() -> None:
    """Skip the test where this process may not create mount and PID namespaces."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    command = ["unshare", "-m", "-p", "-f", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    if subprocess.run(command, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("this process may not create mount and PID namespaces")
