"""LMCache's remote storage in kvstore: `KVStoreAdapter`, a plug-in for LMCache 0.5.6.

remote_storage_plugins: ["kvstore"]
extra_config:
  remote_storage_plugin.kvstore.module_path: kvstore.integrations.lmcache
  remote_storage_plugin.kvstore.class_name: KVStoreAdapter
  remote_storage_plugin.kvstore.master: 127.0.0.1:50051

`options.Options` lists all options, each prefixed by the plug-in's name. A second instance is
called "kvstore.<name>". Only `connector` imports LMCache.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore.integrations.lmcache.connector import KVStoreAdapter, KVStoreRemoteConnector
else:

    def __getattr__(name: str) -> Any:
        """Load the plug-in when it is first accessed: it derives from LMCache's classes.

        Source: PEP 562.
        """
        if name in {"KVStoreAdapter", "KVStoreRemoteConnector"}:
            from kvstore.integrations.lmcache import connector

            return getattr(connector, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["KVStoreAdapter", "KVStoreRemoteConnector"]
