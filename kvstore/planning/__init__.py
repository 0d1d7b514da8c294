"""Planning: bytes of a model's KV pages, and hit rates at other sizes; pure functions."""
