"""Options: what an operator may set in kv_connector_extra_config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvstore.client.connect import Transport, connect
from kvstore.client.store import Store


@dataclass(frozen=True, kw_only=True)
class Options:
    """The extra config of a KVStoreConnector; only `master` has no default."""

    master: str | list[str]
    """Address of the master, or several, tried in order."""
    tenant: str = "default"
    token_file: str | None = None
    transport: Transport = "auto"
    timeout_ms: int = 2000
    """Deadline of each call that moves pages; these are made in threads of their own."""
    lookup_timeout_ms: int = 200
    """Deadline of each lookup; vLLM's scheduler waits for it."""
    lease_ms: int = 10_000
    """How long found pages are kept from eviction after this engine's death; renewed till then."""
    wait_ms: int = 0
    """A decode engine waits so long for pages that its prefill engine still writes; 0: never."""
    prefill_tokens_per_s: float = 0.0
    """How fast this engine computes a prompt; slower fetches are not made. 0: unknown."""
    save_decode: bool | None = None
    """Save generated tokens' pages too; None: where the role writes at all (another turn of the
    conversation starts with them). True makes a kv_consumer write what it generates."""
    replicas: int = 1
    model: str | None = None
    """Name of the model where engines load the same one from different paths."""
    revision: str | None = None
    """Tells weights apart that have the same path, beside vLLM's own revision."""

    @classmethod
    def of(cls, extra_config: Mapping[str, Any]) -> Options:
        """Read vLLM's kv_connector_extra_config.

        Raises:
            ValueError: `master` is missing, or a name is not known.
        """
        known = [one.name for one in fields(cls)]
        for name in extra_config:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
                raise ValueError(f"kv_connector_extra_config has no {name!r}{hint}")
        if not extra_config.get("master"):
            raise ValueError("kv_connector_extra_config needs 'master', the address of the master")
        return cls(**extra_config)

    def open_store(self, namespace: str, timeout_ms: int) -> Store:
        """Connect; raises what `kvstore.connect` does."""
        return connect(
            self.master,
            tenant=self.tenant,
            namespace=namespace,
            token_file=self.token_file,
            timeout_ms=timeout_ms,
            transport=self.transport,
        )
