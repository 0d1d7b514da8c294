"""vLLM's KV cache in kvstore: `KVStoreConnector`, a KV connector (v1) for vLLM 0.32.

--kv-transfer-config '{"kv_connector": "KVStoreConnector", "kv_role": "kv_both",
  "kv_connector_module_path": "kvstore.integrations.vllm",
  "kv_connector_extra_config": {"master": "127.0.0.1:50051"}}'

`options.Options` lists the extra config. Modules:

options    settings of the operator
pages      from tokens and block tables to keys, from tensors to addresses
memory     moves blocks between the KV cache and the store
messages   between scheduler and workers
scheduler  decides what to load and save; worker: loads and saves, in threads
connector  joins them to vLLM's interface, with facts (the namespace) and telemetry (counters);
           only these import vLLM
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.integrations.vllm.connector import KVStoreConnector
else:

    def __getattr__(name: str) -> Any:
        """Load the connector when it is first accessed: it derives from a class of vLLM.

        Source: PEP 562.
        """
        if name == "KVStoreConnector":
            from kvstore.integrations.vllm.connector import KVStoreConnector

            return KVStoreConnector
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["KVStoreConnector"]
