"""Mooncake's package, as kvstore offers it."""

__all__: list[str] = []
