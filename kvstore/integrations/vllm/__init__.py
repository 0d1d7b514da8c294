"""vLLM's KV cache in kvstore: `KVStoreConnector`, a KV connector (v1) for vLLM 0.32.

--kv-transfer-config '{"kv_connector": "KVStoreConnector", "kv_role": "kv_both",
  "kv_connector_module_path": "kvstore.integrations.vllm",
  "kv_connector_extra_config": {"master": "127.0.0.1:50051"}}'

`options.Options` lists the extra config. The parts, each readable alone:

options    what an operator may set
pages      from tokens and block tables to keys, from tensors to addresses
memory     moves blocks between the KV cache and the store
messages   what scheduler and workers tell each other
scheduler  what to load and to save; worker: loads and saves, in threads
connector  joins them to vLLM's interface, with facts (the namespace) and telemetry (counters);
           only these import vLLM
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.integrations.vllm.connector import KVStoreConnector
else:

    def __getattr__(name: str) -> Any:
        """Load the connector when vLLM asks for it: it derives from a class of vLLM's.

        Source: PEP 562.
        """
        if name == "KVStoreConnector":
            from kvstore.integrations.vllm.connector import KVStoreConnector

            return KVStoreConnector
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["KVStoreConnector"]
