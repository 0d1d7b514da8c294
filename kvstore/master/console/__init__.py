"""The web console: read-only pages, and the JSON that they and `kvstore top` read."""
