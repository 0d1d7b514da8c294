"""The doctor on clusters with one planted fault each: found, with its sentence and its fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvstore.doctor import Finding, Level, run
from kvstore.doctor.checks import CLUSTER
from kvstore.doctor.cluster import Cluster, HttpAnswer, MasterFacts, NodeFacts
from kvstore.errors import Status

WARN, FAIL = Level.WARN, Level.FAIL
HTTP = HttpAnswer(endpoint="http://10.0.0.2:9081", ready=True, details={"link": "up"},
                  version="0.1.0", ahead_s=0.3, certificate_s=30 * 86_400.0)  # fmt: skip
SHM = {"path": "shm", "cause": None, "why": "its memory is mapped", "setting": None,
       "same_host": True}  # fmt: skip
NODE = NodeFacts(node_id="a", state="alive", endpoint="tcp://10.0.0.2:50061", answers=True,
                 http=HTTP, peer=SHM)  # fmt: skip
MASTER = MasterFacts(
    addresses=("10.0.0.1:50051",),
    grpc_endpoint="10.0.0.1:50052",
    version="0.1.0",
    http=replace(HTTP, endpoint="http://10.0.0.1:9080"),
)
HEALTHY = Cluster(version="0.1.0", master=MASTER, nodes=(NODE, replace(NODE, node_id="b")))
DOWN = Cluster(
    version="0.1.0",
    master=MasterFacts(addresses=("10.0.0.1:50051",), status=Status.Unavailable, error="nobody"),
)

Plant = Callable[[], Cluster]


def look(cluster: Cluster) -> list[Finding]:
    return list(run(CLUSTER, cluster))


def node(**changes: Any) -> Plant:
    return lambda: replace(HEALTHY, nodes=(replace(NODE, **changes), HEALTHY.nodes[1]))


def http(**changes: Any) -> Plant:
    return node(http=replace(HTTP, **changes))


def peer(**changes: Any) -> Plant:
    return node(peer={**SHM, **changes})


def master(**changes: Any) -> Plant:
    return lambda: replace(HEALTHY, master=replace(MASTER, **changes))


def down(**changes: Any) -> Plant:
    return lambda: replace(DOWN, master=replace(DOWN.master, **changes))


def test_a_healthy_cluster_gives_neither_failure_nor_warning() -> None:
    found = look(HEALTHY)
    assert {f.level for f in found} == {Level.OK}
    assert {f.check for f in found} == {check.name for check in CLUSTER} - {"roundtrip"}


FAULTS: list[tuple[str, Plant, str, Level, str, str]] = [
    ("no master", down(), "master", FAIL, "nobody", "start kvstore-master"),
    ("no cluster at all", down(is_named=False), "master", WARN, "no cluster was checked: nobody",
     "--master HOST:PORT"),
    ("no token", down(status=Status.Unauthenticated, error="who?"), "token", FAIL,
     "a token is required: who?", "--token-file"),
    ("wrong token", down(status=Status.Unauthenticated, error="who?", token_file="t"), "token",
     FAIL, "the token of t is refused: who?", "auth_token_file of master and nodes"),
    ("wrong tenant", down(status=Status.PermissionDenied, error="tenant x"), "token", FAIL,
     "the principal may not do this: tenant x", "another --tenant"),
    ("token file", down(status=Status.InvalidArgument, token_problem="t: others may read it"),
     "token", FAIL, "others may read it", "chmod 0600"),
    ("gRPC", master(grpc_error="no answer"), "master", FAIL, "gRPC at 10.0.0.1:50052: no answer",
     "advertise_host"),
    ("gRPC refuses", master(refused="tenant default"), "master", WARN,
     "nodes were not asked for health and versions: tenant default", "of an operator"),
    ("HTTP of the master", master(http=HttpAnswer(endpoint="http://10.0.0.1:9080", error="closed")),
     "master", FAIL, "HTTP at http://10.0.0.1:9080: closed", "http_port (9080)"),
    ("rebuilding", master(awaited=("c", "d")), "master", WARN, "puts wait for c, d",
     "kvstore forget NODE"),
    ("no node", lambda: replace(HEALTHY, nodes=()), "nodes", FAIL, "no node is alive",
     "start kvstore-node"),
    ("dead node", node(state="dead"), "nodes", WARN, "a is dead", "kvstore forget a"),
    ("unverified node", node(state="joining", problem="no route"), "nodes", FAIL,
     "a is not told to clients: no route", "advertise_host"),
    ("hung node", node(answers=False, error="it accepts the connection, but says nothing"),
     "nodes", FAIL, "a does not answer at tcp://10.0.0.2:50061: it accepts", "restart it"),
    ("HTTP of a node", http(error="refused"), "nodes", WARN, "a: HTTP at", "http_port"),
    ("node without link", http(ready=False, details={"link": "down"}), "nodes", FAIL,
     "a is not ready (link to the master: down)", "/readyz"),
    ("degraded node", http(details={"nvme_error": "disk full"}), "nodes", WARN,
     "a serves, but nvme_error disk full", "see its log"),
    ("old node", http(version="0.0.9"), "versions", WARN,
     "a has version 0.0.9, this client 0.1.0; they work together", "one version"),
    ("ancient node", http(version="0.4.0"), "versions", FAIL, "only neighbouring minor versions",
     "nodes first"),
    ("odd version", http(version="x"), "versions", FAIL, "a has version x", "one version"),
    ("other master", master(version="2.1.0"), "versions", FAIL, "the master has version 2.1.0",
     "one version"),
    ("clock ahead", http(ahead_s=3600.2), "clocks", WARN,
     "the clock of a is 3,600 s ahead of this host's", "chronyd"),
    ("clock behind", master(http=replace(MASTER.http, ahead_s=-60.0)), "clocks", WARN,
     "the clock of the master is 60 s behind", "chronyd"),
    ("expired certificate", http(certificate_s=-60.0), "tls", FAIL,
     "the certificate of a has expired", "replace the files"),
    ("certificate of a day", master(http=replace(MASTER.http, certificate_s=86_400.0)),
     "tls", WARN, "the certificate of the master expires in 24 hours", "without a restart"),
    ("TLS", down(status=Status.Unauthenticated, error="TLS is required here"), "token", FAIL,
     "TLS is required here", "--tls-ca"),
    ("socket not visible", peer(path="tcp", cause="not_found", why="its socket does not exist here",
     setting="set socket_dir"), "paths", WARN,
     "a is on this host, but reached over tcp: its socket does not exist here", "set socket_dir"),
    ("tenant", peer(path="tcp", cause="tenant", why="it does not share", setting="shm_write"),
     "paths", WARN, "it does not share", "shm_write"),
    ("shm not offered", peer(path="tcp", cause="not_offered", why="not offered",
     setting="add shm to transports"), "paths", WARN, "not offered", "add shm to transports"),
    ("no path", peer(path=None, cause="other_host", why="it is on another host", same_host=False),
     "paths", FAIL, "a cannot be reached: it is on another host", "add tcp to its transports"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("plant", "check", "level", "said", "fix"),
    [fault[1:] for fault in FAULTS],
    ids=[fault[0] for fault in FAULTS],
)
def test_a_planted_fault_is_found_with_its_fix(
    plant: Plant, check: str, level: Level, said: str, fix: str
) -> None:
    found = look(plant())
    wrong = [f for f in found if f.level is not Level.OK]
    assert [(f.check, f.level) for f in wrong] == [(check, level)], wrong
    assert said in wrong[0].message and fix in wrong[0].fix


def test_nodes_elsewhere_are_reached_over_tcp() -> None:
    elsewhere = {"path": "tcp", "cause": "other_host", "why": "it is on another host",
                 "same_host": False}  # fmt: skip
    only_tcp = {"path": "tcp", "cause": "not_offered", "why": "no shm", "same_host": None}
    cluster = replace(
        HEALTHY,
        nodes=(replace(NODE, peer=elsewhere), replace(NODE, node_id="b", peer=only_tcp)),
    )
    found = [f for f in look(cluster) if f.check == "paths"]
    assert [f.level for f in found] == [Level.OK, Level.OK]
    assert found[0].message == "a is reached over tcp: it is on another host"


def test_nothing_is_said_of_what_is_not_known() -> None:
    silent = HttpAnswer(endpoint="http://10.0.0.2:9081", ready=True)
    cluster = replace(
        HEALTHY,
        master=replace(MASTER, version="", http=HttpAnswer()),
        nodes=(replace(NODE, endpoint="", http=silent, peer=None),),
    )
    assert {f.check for f in look(cluster)} == {"master", "token"}
