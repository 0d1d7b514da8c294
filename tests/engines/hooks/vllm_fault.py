"""FaultConnector: a KVStoreConnector that kills a process between a lookup and its load."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from kvstore.integrations.vllm import KVStoreConnector


class FaultConnector(KVStoreConnector):  # type: ignore[misc]  # vLLM is not where types are checked
    """Kills the pid that stands in the file $KVSTORE_TEST_KILL, once, when there is a load."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        order = Path(os.environ["KVSTORE_TEST_KILL"])
        if self._step().loads and order.exists():
            os.kill(int(order.read_text()), signal.SIGKILL)
            order.unlink()
        super().start_load_kv(forward_context, **kwargs)
