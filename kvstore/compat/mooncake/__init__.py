"""Mooncake's Python interface on kvstore, for engines with an unchanged Mooncake backend.

Enabled explicitly, for this process and those that it starts::

    python -m kvstore.compat.mooncake -m vllm.entrypoints.cli.main serve …

    import kvstore.compat.mooncake as m
    m.install()                     # before the engine imports mooncake
"""

from kvstore.compat.mooncake.codes import ErrorCode
from kvstore.compat.mooncake.install import install, installed
from kvstore.compat.mooncake.store import (
    MooncakeDistributedStore,
    MooncakeDistributedStoreAsync,
)
from kvstore.compat.mooncake.values import ReplicateConfig

__all__ = [
    "ErrorCode",
    "MooncakeDistributedStore",
    "MooncakeDistributedStoreAsync",
    "ReplicateConfig",
    "install",
    "installed",
]
