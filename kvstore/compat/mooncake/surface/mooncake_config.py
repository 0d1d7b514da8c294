"""mooncake.mooncake_config, as kvstore offers it."""

from kvstore.compat.mooncake.settings import MooncakeConfig

__all__ = ["MooncakeConfig"]
