"""FaultConnector: a KVStoreConnector that kills between a lookup and its load, and tells events."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvstore.integrations.vllm import KVStoreConnector


class FaultConnector(KVStoreConnector):
    """Kills the pid that stands in the file $KVSTORE_TEST_KILL, once, when there is a load.

    Events go to the file $KVSTORE_TEST_EVENTS, too, if it is named: a JSON line each.
    """

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        order = Path(os.environ["KVSTORE_TEST_KILL"])
        if self._step().loads and order.exists():
            os.kill(int(order.read_text()), signal.SIGKILL)
            order.unlink()
        super().start_load_kv(forward_context, **kwargs)

    def take_events(self) -> Iterable[Any]:
        events = list(super().take_events())
        path = os.environ.get("KVSTORE_TEST_EVENTS")
        if path and events:
            with open(path, "a") as lines:
                for event in events:
                    told = {
                        "group": event.group_idx,
                        "tokens": list(event.token_ids),
                        "hashes": [str(one) for one in event.block_hashes],
                        "parent": event.parent_block_hash and str(event.parent_block_hash),
                        "size": event.block_size,
                        "medium": event.medium,
                    }
                    lines.write(json.dumps(told) + "\n")
        return events
