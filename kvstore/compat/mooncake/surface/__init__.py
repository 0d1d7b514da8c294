"""The names that each of Mooncake's modules has, as the drop-in offers them."""
