"""What /readyz of a node lists while it serves with less than it was given."""

from __future__ import annotations

from typing import Any

from kvstore.node.http import degraded

WELL: dict[str, Any] = {"prefault_error": "", "index_error": "", "nvme": None, "ucx_errors": {}}


def test_a_node_that_has_everything_lists_nothing() -> None:
    assert degraded(WELL, "") == []
    assert degraded({**WELL, "nvme": {"state": "active", "error": ""}}, "") == []


def test_every_lack_is_a_sentence() -> None:
    stats = {
        "prefault_error": "only up to 48.0 MiB",
        "index_error": "segment_dir is full",
        "nvme": {"state": "read_only", "error": "no room"},
        "ucx_errors": {"shared": "ulimit -l is too small"},
    }
    assert degraded(stats, "no second index") == [
        "memory: only up to 48.0 MiB",
        "index: segment_dir is full",
        "restart: no second index",
        "ucx: domain shared: ulimit -l is too small",
        "nvme read only: no room",
    ]
