"""What a node does after each answer of the master."""

from __future__ import annotations

import pytest

from kvstore import _native
from kvstore.config import NodeConfig
from kvstore.errors import Status
from kvstore.node import session, socket_path
from kvstore.node.agent import Session
from kvstore.node.core_options import core_options, tunables
from kvstore.node.server import advertised
from kvstore.node.session import Step


@pytest.mark.parametrize("status", list(Status))
def test_a_heartbeat_never_ends_the_node(status: Status) -> None:
    expected = {Status.Ok: Step.CONTINUE, Status.NotFound: Step.REGISTER}
    late = session.after_heartbeat(status, session.LATE_MAX)
    assert late is expected.get(status, Step.FIND_MASTER)


def test_only_what_cannot_get_better_ends_the_node() -> None:
    hopeless = {Status.AlreadyExists, Status.VersionMismatch, Status.InvalidArgument}
    refused = {Status.Unauthenticated, Status.PermissionDenied}
    for status in Status:
        first = session.after_register(status, served_before=False)
        later = session.after_register(status, served_before=True)
        assert (first is Step.GIVE_UP) == (status in hopeless | refused), status
        assert (later is Step.GIVE_UP) == (status in hopeless), status


def test_the_backoff_doubles_up_to_its_bound_and_spreads() -> None:
    assert [session.backoff_ms(n, 1.0) for n in (1, 2, 3)] == [100, 200, 400]
    assert session.backoff_ms(1, 0.0) == 50
    assert session.backoff_ms(10_000, 1.0) == session.BACKOFF_MAX_MS


def test_the_options_of_the_native_node_follow_the_configuration() -> None:
    given = Session(5, 2, "c" * 32, b"s" * 16, "10.0.0.1:50051", 1000)
    config = NodeConfig(node_id="a", host="::1", port=7, segment_dir="/dev/shm/x")
    options = core_options(config, given, None, ())
    assert options.tcp_endpoint == "tcp://[::1]:7"
    assert options.unix_endpoint == "unix:///dev/shm/x/node.sock"
    assert (options.session_id, options.node_epoch) == (5, 2)
    assert options.token == ""
    only_tcp = core_options(NodeConfig(transports=("tcp",)), given, None, ())
    assert only_tcp.unix_endpoint == "" and only_tcp.tcp_endpoint == "tcp://127.0.0.1:0"
    only_shm = core_options(NodeConfig(transports=("shm",)), given, None, ())
    assert only_shm.tcp_endpoint == "" and only_shm.unix_endpoint


def test_the_native_defaults_are_those_of_the_configuration() -> None:
    native, configured = _native.NodeTunables(), tunables(NodeConfig())
    names = [name for name in dir(native) if not name.startswith("_")]
    assert len(names) == 13
    for name in names:
        assert getattr(native, name) == getattr(configured, name), name
    assert _native.NodeOptions().server_threads == NodeConfig().event_loops


def test_a_long_folder_gets_an_abstract_socket() -> None:
    long = NodeConfig(node_id="a", segment_dir="/dev/shm/" + "x" * 100)
    assert socket_path.endpoint(long).startswith("unix:@kvstore-a-")
    longest = NodeConfig(node_id="n" * 255, segment_dir="/" + "x" * 200)
    assert len(socket_path.endpoint(longest)) <= 107


def test_what_is_announced_can_be_reached() -> None:
    bound = "tcp://0.0.0.0:4711"
    assert advertised(bound, NodeConfig(advertise_host="n1.rack")) == "tcp://n1.rack:4711"
    assert advertised(bound, NodeConfig(host="0.0.0.0")) != bound
    assert advertised("tcp://[::1]:4711", NodeConfig(host="::1")) == "tcp://[::1]:4711"
    assert advertised("", NodeConfig()) == ""


def test_a_failed_heartbeat_is_repeated_soon() -> None:
    waits = [session.heartbeat_wait_ms(20_000, 0, 0, jitter) for jitter in (0, 1)]
    assert waits == [20_000, 16_000]
    assert session.heartbeat_wait_ms(20_000, 1, 0, 1) == session.BACKOFF_FIRST_MS
    assert session.heartbeat_wait_ms(20_000, 10, 0, 1) == session.BACKOFF_MAX_MS
    assert session.heartbeat_wait_ms(1000, 10, 0, 1) == 250
    assert session.heartbeat_wait_ms(400, 10, 0, 1) == 100
    assert session.heartbeat_wait_ms(1000, 1, 0, 1) == 20


def test_a_found_master_is_told_at_once_in_a_small_cluster() -> None:
    assert [session.found_wait_ms(1000, jitter) for jitter in (0, 1)] == [0, 20]
    assert session.found_wait_ms(20_000, 1) == session.BACKOFF_FIRST_MS


def test_nodes_without_a_link_hurry_in_a_small_cluster_alone() -> None:
    assert session.heartbeat_wait_ms(1000, 0, 1, 1) == 20
    assert session.heartbeat_wait_ms(1000, 0, 10, 1) == 250
    assert session.heartbeat_wait_ms(20_000, 0, 10, 0) == 20_000


def test_a_late_master_is_not_looked_for_at_once() -> None:
    assert session.after_heartbeat(Status.DeadlineExceeded, 1) is Step.CONTINUE
    assert session.after_heartbeat(Status.Unavailable, 1) is Step.FIND_MASTER
