"""kvstore drain and a master of an older version, which ignores what it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner

from kvstore._proto import master_pb2
from kvstore.cli import leaving


class OldMaster:
    """Takes `cancel` for what it is, and everything else for a drain."""

    def __init__(self) -> None:
        self.draining = False

    def Drain(self, request: master_pb2.DrainRequest, **_: Any) -> master_pb2.DrainReply:
        self.draining = not request.cancel
        reply = master_pb2.DrainReply()
        reply.node.node_id = request.node_id
        return reply


def test_a_dry_run_drains_nothing_where_the_master_does_not_know_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    master = OldMaster()

    @contextmanager
    def control(_: object) -> Iterator[tuple[OldMaster, dict[str, Any]]]:
        yield master, {}

    monkeypatch.setattr(leaving, "control", control)
    done = CliRunner().invoke(leaving.drain, ["a", "--dry-run"])
    assert (done.exit_code, master.draining) == (5, False)
    assert "upgrade" in done.output
