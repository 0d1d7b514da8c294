"""A limit on locked memory that holds for root, too."""

from __future__ import annotations


def limited(size_bytes: int) -> list[str]:
    """Return what to put before a command that may lock and register only this much memory.

    The capability goes as well: whoever has CAP_IPC_LOCK is not limited.
    """
    return [
        *("prlimit", f"--memlock={size_bytes}:{size_bytes}", "--"),
        *("setpriv", "--bounding-set=-ipc_lock", "--"),
    ]
