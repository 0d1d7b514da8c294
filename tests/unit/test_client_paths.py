"""What a store says of its way to a node, and the warning about a node it cannot map."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from kvstore.client import paths

AUTO, SHM, TCP, UCX = 0, 1, 2, 3


def row(**known: Any) -> dict[str, Any]:
    return {
        "node_id": "a",
        "state": 1,
        "tcp_endpoint": "tcp://10.0.0.1:7001",
        "unix_endpoint": "unix:///run/kv/a/node.sock",
        "host": "h",
        "attached": False,
        "same_host": True,
        "cause": "none",
        "detail": "",
        "attach_failures": 0,
        "ucx": False,
        "ucx_detail": "",
        "rdma_apart": False,
        "rdma_domain": "",
        "near": "other",
    } | known


@pytest.mark.parametrize(
    ("known", "transport", "path", "cause"),
    [
        ({"attached": True}, AUTO, "shm", None),
        ({"cause": "permission"}, AUTO, "tcp", "permission"),
        ({"cause": "permission", "tcp_endpoint": ""}, AUTO, "unix", "permission"),
        ({"cause": "tenant"}, SHM, None, "tenant"),
        ({"cause": "other", "detail": "it hangs"}, AUTO, "tcp", "other"),
        ({"cause": "not_found", "same_host": False}, AUTO, "tcp", "other_host"),
        ({"cause": "not_found", "same_host": None}, AUTO, "tcp", "not_found"),
        ({}, TCP, "tcp", "transport"),
        ({}, AUTO, "tcp", None),
        ({"unix_endpoint": ""}, AUTO, "tcp", "not_offered"),
        ({"state": 3}, AUTO, None, "dead"),
        ({"ucx": True}, AUTO, "ucx", None),
        ({}, UCX, "tcp", "no_ucx"),
        ({"same_host": False, "ucx_detail": "refused"}, AUTO, "tcp", "no_ucx"),
        ({"same_host": False, "rdma_apart": True}, AUTO, "tcp", "rdma_domain"),
        ({"same_host": True, "rdma_apart": True, "attached": True}, AUTO, "shm", None),
    ],
)
def test_the_path_and_its_cause(
    known: dict[str, Any], transport: int, path: str | None, cause: str | None
) -> None:
    peer = paths.peer(row(**known), transport)
    assert (peer["path"], peer["cause"]) == (path, cause)
    assert peer["why"]
    endpoint = {"shm": "unix_endpoint", "unix": "unix_endpoint", "tcp": "tcp_endpoint"}
    endpoint["ucx"] = endpoint["tcp"]
    assert peer["endpoint"] == (row()[endpoint[path]] if path else None)


def test_the_reason_says_whose_rights_and_which_path() -> None:
    peer = paths.peer(row(cause="permission"), AUTO)
    assert f"uid {os.geteuid()}" in peer["why"] and "/run/kv/a/node.sock" in peer["why"]
    assert "socket_group" in peer["setting"]
    doubtful = paths.peer(row(cause="not_found", same_host=None), AUTO)
    assert "not known" in doubtful["why"]
    assert paths.peer(row(cause="other", detail="it hangs"), AUTO)["why"] == "it hangs"
    abstract = paths.peer(row(cause="no_listener", unix_endpoint="unix:@kvstore-a-7"), AUTO)
    assert abstract["cause"] == "no_listener" and "network namespace" in abstract["why"]


def test_a_summary_counts_nodes_of_this_host_only() -> None:
    rows = [row(attached=True), row(cause="user"), row(cause="not_found", same_host=False)]
    rows += [row(cause="not_found", same_host=None), row(state=3), row()]
    assert paths.summary(paths.peer(one, AUTO) for one in rows) == {
        "paths": {"shm": 1, "tcp": 4, "none": 1},
        "unattached": {"user": 1},
    }


def test_a_node_and_cause_are_reported_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_reported", {})
    with caplog.at_level(logging.WARNING, "kvstore.client"):
        for _ in range(3):
            paths.report("a", "unix:///run/kv/a/node.sock", "permission", "connect: no")
            paths.report("b", "unix:///run/\nb/node.sock", "not_found", "connect: no")
        paths.report("a", "unix:///run/kv/a/node.sock", "other", "it hangs")
    first, second, third = caplog.messages
    assert "node a " in first and "socket_dir" in first
    assert "node b " in second and "/run/?b/node.sock" in second
    assert third.endswith("it hangs. Its objects pass through a socket, which is slower.")
