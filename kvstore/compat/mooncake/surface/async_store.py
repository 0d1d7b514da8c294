"""mooncake.async_store, as kvstore offers it."""

from kvstore.compat.mooncake.store import MooncakeDistributedStore, MooncakeDistributedStoreAsync

__all__ = ["MooncakeDistributedStore", "MooncakeDistributedStoreAsync"]
