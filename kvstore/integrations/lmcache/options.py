"""Options: what an operator may set of the plug-in in LMCache's extra_config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvstore.client.connect import Transport, connect
from kvstore.client.store import Store

_OF_LMCACHE = {"module_path", "class_name"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The plug-in's options; only `master` has no default."""

    master: str | list[str]
    """Address of the master, or several, tried in order."""
    tenant: str = "default"
    token_file: str | None = None
    transport: Transport = "auto"
    timeout_ms: int = 2000
    """Deadline of each call of the store."""
    prefill_tokens_per_s: float = 0.0
    """How fast the engine computes a prompt; slower fetches are not made. 0: unknown."""
    replicas: int = 1
    revision: str = ""
    """Tells weights apart whose model has the same name."""

    @classmethod
    def of(cls, plugin: str, extra_config: Mapping[str, Any]) -> Options:
        """Read the options of one plug-in, "remote_storage_plugin.<plugin>.<option>".

        Raises:
            ValueError: `master` is missing, or an option is not known.
        """
        prefix = f"remote_storage_plugin.{plugin}."
        known = [one.name for one in fields(cls)]
        found = {}
        for name, value in extra_config.items():
            option = name.removeprefix(prefix)
            if option == name or option in _OF_LMCACHE or "." in option:
                continue
            if option not in known:
                near = difflib.get_close_matches(option, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
                raise ValueError(f"{prefix} has no {option!r}{hint}")
            found[option] = value
        if not found.get("master"):
            raise ValueError(f"extra_config needs {prefix}master, the address of the master")
        return cls(**found)

    def open_store(self, namespace: str) -> Store:
        """Connect; raises what `kvstore.connect` does."""
        return connect(
            self.master,
            tenant=self.tenant,
            namespace=namespace,
            token_file=self.token_file,
            timeout_ms=self.timeout_ms,
            transport=self.transport,
        )
