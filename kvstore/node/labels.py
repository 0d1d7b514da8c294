"""A node's labels: those of its configuration, and what its host's topology tells beside them."""

from __future__ import annotations

from collections.abc import Callable

from kvstore.config import NodeConfig
from kvstore.limits import MAX_LABELS
from kvstore.topology import labels


def labels_of(
    config: NodeConfig, found: Callable[[], dict[str, str]] = labels.found
) -> dict[str, str]:
    """Return the labels to register.

    Args:
        config: of the node. What it sets is kept, an empty value too.
        found: finds the host's own labels.

    Returns:
        The labels, at most MAX_LABELS.
    """
    given = config.placement_labels()
    missing = {name: value for name, value in found().items() if name not in given}
    room = MAX_LABELS - len(given)
    return {**given, **dict(list(missing.items())[:room])}
