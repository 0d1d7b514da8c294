"""kvstore as SGLang's third cache level: a HiCache storage backend.

SGLang loads it by `--hicache-storage-backend dynamic` with `module_path`
"kvstore.integrations.sglang" and `class_name` "KVStoreHiCache". Importing this package imports
nothing of SGLang; asking it for the class does, since that derives from SGLang's own.

settings  what the user may say
naming    which pages are compatible, and what a page's objects are called
hits      which prefixes a request can be resumed at
pools     from SGLang's page indices to the addresses of its host memory
backend   all of the storage interface, without SGLang
hicache   the class that SGLang is given
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.integrations.sglang.hicache import KVStoreHiCache

__all__ = ["KVStoreHiCache"]


def __getattr__(name: str) -> Any:
    """Load the class for SGLang when it is asked for (PEP 562)."""
    if name == "KVStoreHiCache":
        from kvstore.integrations.sglang.hicache import KVStoreHiCache

        return KVStoreHiCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
