"""kvstore as SGLang's third cache level: a HiCache storage backend.

SGLang loads it by `--hicache-storage-backend dynamic` with `module_path`
"kvstore.integrations.sglang" and `class_name` "KVStoreHiCache". Importing this package imports
nothing of SGLang; accessing the class does, since it derives from SGLang's own.

options   settings of the operator
naming    which pages are compatible, and the names of a page's objects
hits      prefixes at which a request can be resumed
pools     from SGLang's page indices to the addresses of its host memory
backend   the whole storage interface, without SGLang
hicache   the class that SGLang loads
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.integrations.sglang.hicache import KVStoreHiCache

__all__ = ["KVStoreHiCache"]


def __getattr__(name: str) -> Any:
    """Load the class when it is first accessed (PEP 562)."""
    if name == "KVStoreHiCache":
        from kvstore.integrations.sglang.hicache import KVStoreHiCache

        return KVStoreHiCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
