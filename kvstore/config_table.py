"""The table of all configuration keys, for deploy/README.md: python -m kvstore.config_table."""

from __future__ import annotations

from typing import get_type_hints

import msgspec

from kvstore import config
from kvstore.config import MasterConfig, NodeConfig
from kvstore.sizes import format_size


def _default(field: msgspec.structs.FieldInfo, is_size: bool) -> str:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if is_size and value:
        return f'`"{format_size(value).replace("i", "").replace(" ", "").lower()}"`'
    return f"`{msgspec.json.encode(value).decode()}`"


# Words of the table for a field's _RELOAD mark.
_RELOADS = {True: "yes", False: "restart", config.EMPTIED: "yes; restart to empty it"}


def table() -> str:
    """Every key of both configurations as two Markdown tables, for deploy/README.md."""
    parts = []
    for kind, program in ((MasterConfig, "kvstore-master"), (NodeConfig, "kvstore-node")):
        hints = get_type_hints(kind, include_extras=True)
        sizes = config.size_fields(kind)
        live = config.marks(kind, config.RELOAD)
        rows = [f"| `{program}` key | Default | Reload | Meaning |", "|---|---|---|---|"]
        for field in msgspec.structs.fields(kind):
            about = [m.description for m in config.metas_of(hints[field.name]) if m.description]
            default, reload = _default(field, field.name in sizes), _RELOADS[live[field.name]]
            rows.append(f"| `{field.name}` | {default} | {reload} | {about[-1]} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(table(), end="")
