"""The tool as a process of its own: what it loads, and what a shell does with its completion."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kvstore import __version__

LOADED = """
import sys
from kvstore.cli.operator import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = ("grpc", "google", "rich", "msgspec", "aiohttp", "lmdb", "prometheus_client", "asyncio",
    "kvstore.compat", "kvstore.master", "kvstore.node")
print(sorted(name for name in heavy if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["version"], ["get", "k"], ["put", "k"], ["ls"], ["rm", "k"], ["explain", "k"]]
)
def test_a_command_loads_what_it_needs(arguments: list[str]) -> None:
    """The modules that cost the most: grpc alone takes longer than a get."""
    closed = ["--master", "127.0.0.1:1"] if arguments != ["version"] else []
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments, *closed],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def test_the_drop_in_has_a_version() -> None:
    for option in ("--version", "-V"):
        done = subprocess.run(
            [sys.executable, "-m", "kvstore.compat.mooncake", option],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == f"kvstore.compat.mooncake, version {__version__}\n"


def _script() -> str:
    command = [sys.executable, "-m", "kvstore.cli.operator", "completion", "bash"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_bash_loads_the_script() -> None:
    script = _script() + "complete -p kvstore\n"
    done = subprocess.run(
        ["bash", "--norc"], input=script, capture_output=True, text=True, timeout=60, check=True
    )
    assert "_kvstore_completion" in done.stdout and not done.stderr
