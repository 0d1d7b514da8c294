"""Options: what an operator may set in --hicache-storage-backend-extra-config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore import options
from kvstore.client.answers import kept_as
from kvstore.integrations.options import StoreOptions

# Keys of the same JSON object that SGLang itself reads; some of its versions take them out.
SGLANG_KEYS = frozenset(
    {
        *("backend_name", "module_path", "class_name", "interface_v1", "tp_lcm_size"),
        *("prefetch_threshold", "prefetch_timeout_base", "prefetch_timeout_per_ki_token"),
        *("hicache_storage_pass_prefix_keys", "file_storage_path"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Options(StoreOptions):
    """The extra config of a HiCache backend. A deadline covers at most 128 pages."""

    ttl_ms: int = 0
    """Pages expire after this time; 0: never."""
    weights_revision: str = ""
    """Names the weights where the model's path and revision, as SGLang was given them, do not:
    engines with another text here share no pages with this one."""
    interface_v1: bool = False
    """SGLang moves pages by address, without a copy in Python."""

    def __post_init__(self) -> None:
        """Refuse replicas and a time to live that no put accepts."""
        kept_as(self.replicas, None, self.ttl_ms or None)

    @classmethod
    def of(cls, extra_config: Mapping[str, Any] | None) -> Options:
        """Read SGLang's extra config, which also holds SGLang's own keys.

        Raises:
            InvalidArgumentError: A key is unknown or missing, or a value is wrong.
        """
        given = dict(extra_config or {})
        given["interface_v1"] = bool(given.get("interface_v1", 0))  # 0 or 1 in SGLang's own words
        where = "hicache-storage-backend-extra-config: "
        return options.read(cls, given, where, sorted(SGLANG_KEYS - {"interface_v1"}))
