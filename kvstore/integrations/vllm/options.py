"""Options: what an operator may set in kv_connector_extra_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvstore import options
from kvstore.integrations.options import StoreOptions


@dataclass(frozen=True, kw_only=True)
class Options(StoreOptions):
    """The extra config of a KVStoreConnector. Threads of their own move pages (`timeout_ms`)."""

    lookup_timeout_ms: int = 200
    """Deadline of each lookup; vLLM's scheduler waits for it."""
    lease_ms: int = 10_000
    """How long found pages are protected from eviction after this engine's death; the engine renews
    the leases while it lives."""
    wait_ms: int = 0
    """How long a decode engine waits for pages that its prefill engine is still writing; 0: not at
    all."""
    save_decode: bool | None = None
    """Save generated tokens' pages too; None: where the role writes at all (another turn of the
    conversation starts with them). True makes a kv_consumer write what it generates."""
    model: str | None = None
    """Name of the model where engines load the same one from different paths."""
    revision: str | None = None
    """Tells weights apart that have the same path, beside vLLM's own revision."""

    @classmethod
    def of(cls, extra_config: Mapping[str, Any]) -> Options:
        """Read vLLM's kv_connector_extra_config.

        Raises:
            InvalidArgumentError: `master` is missing, a name is unknown, or a value is wrong.
        """
        return options.read(cls, extra_config, "kv_connector_extra_config: ")
