"""What `--hicache-storage-backend-extra-config` may say to kvstore, checked at the start."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from kvstore.client.answers import kept_as
from kvstore.client.connect import Transport
from kvstore.errors import InvalidArgumentError

# Keys of the same JSON object that SGLang itself reads; some of its versions take them out.
SGLANG_KEYS = frozenset(
    {
        *("backend_name", "module_path", "class_name", "interface_v1", "tp_lcm_size"),
        *("prefetch_threshold", "prefetch_timeout_base", "prefetch_timeout_per_ki_token"),
        *("hicache_storage_pass_prefix_keys", "file_storage_path"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One engine's settings.

    Attributes:
        master: address of the master, or a list of them, tried in order.
        tenant: whose objects.
        token_file: file with this principal's line; empty without authentication.
        timeout_ms: deadline of each call of the store (at most 128 pages).
        transport: "auto", "shm" or "tcp", as in `kvstore.connect`.
        stripes: over how many connections a large read from one node is spread.
        replicas: how many nodes shall hold a page.
        ttl_ms: pages expire after this many milliseconds; 0: never.
        weights_revision: names the weights where the model's path and revision, as SGLang was given
            them, do not: other text, other pages.
        prefill_tokens_per_s: how fast this engine computes a prompt; where fetching is slower, it
            is left out. 0: never left out.
        interface_v1: SGLang moves pages without a copy, by address.
    """

    master: str | tuple[str, ...]
    tenant: str = "default"
    token_file: str = ""
    timeout_ms: int = 2000
    transport: Transport = "auto"
    stripes: int = 1
    replicas: int = 1
    ttl_ms: int = 0
    weights_revision: str = ""
    prefill_tokens_per_s: float = 0.0
    interface_v1: bool = False


OWN_KEYS = tuple(field.name for field in fields(Settings) if field.name != "interface_v1")


def read(extra_config: Mapping[str, Any] | None) -> Settings:
    """Take the settings out of SGLang's extra config.

    Args:
        extra_config: the JSON object, SGLang's own keys included.

    Returns:
        The settings, each of its type.

    Raises:
        InvalidArgumentError: A key is unknown or missing, or a value is wrong.
    """
    given = dict(extra_config or {})
    for key in given:
        if key not in OWN_KEYS and key not in SGLANG_KEYS:
            near = difflib.get_close_matches(str(key), OWN_KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidArgumentError(
                f"hicache-storage-backend-extra-config: unknown key {key!r}{hint} "
                f"kvstore knows {', '.join(OWN_KEYS)}; SGLang {', '.join(sorted(SGLANG_KEYS))}"
            )
    values: dict[str, Any] = {"interface_v1": bool(given.get("interface_v1", 0))}
    for field in fields(Settings):
        if field.name == "interface_v1":
            continue
        if field.name in given:
            values[field.name] = _checked(field.name, given[field.name], field.default)
        elif field.default is MISSING:
            raise InvalidArgumentError(
                f"hicache-storage-backend-extra-config: {field.name!r} is missing, as in "
                '"master": "127.0.0.1:50051"'
            )
    checked = Settings(**values)
    kept_as(checked.replicas, None, checked.ttl_ms or None)
    return checked


def _checked(name: str, value: Any, default: Any) -> Any:
    """Return a value of the same type as the default; what takes it checks its range."""
    if name == "master":
        several = isinstance(value, (list, tuple)) and value
        if isinstance(value, str) or (several and all(isinstance(one, str) for one in value)):
            return tuple(value) if several else value
        wanted = 'a string "HOST:PORT" or a list of them'
    elif isinstance(default, str):
        if isinstance(value, str):
            return value
        wanted = "a string"
    elif isinstance(default, float):
        if isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
            return float(value)
        wanted = "a number, 0 or more"
    else:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        wanted = "a whole number, 0 or more"
    raise InvalidArgumentError(
        f"hicache-storage-backend-extra-config: {name!r} must be {wanted}, not {value!r}"
    )
