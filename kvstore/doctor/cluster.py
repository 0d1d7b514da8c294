"""Checks of a cluster: master, token, versions, nodes, and how each is reached from here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstore import Store
from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.errors import Status

_MOST_SKEW_S = 5.0
_LEAST_CERTIFICATE_S = 48 * 3600.0
_DEGRADED = ("degraded", "prefault_error", "nvme_error")


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """What an HTTP port said."""

    endpoint: str = ""
    error: str = ""
    """Why it said nothing; empty: it answered."""
    ready: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of /readyz."""
    version: str = ""
    """Empty: not told, as without access to the metrics."""
    ahead_s: float | None = None
    """How far its clock is ahead of this host's, to a second."""
    certificate_s: float | None = None
    """How long its certificate is still valid; None: not told, or no TLS."""


@dataclass(frozen=True, kw_only=True)
class MasterFacts:
    """What is known of the master."""

    addresses: tuple[str, ...]
    is_named: bool = True
    """False: the default address, which may mean nothing here."""
    token_file: str | None = None
    token_problem: str = ""
    """Why the token file cannot be used."""
    status: Status = Status.Ok
    """Of the hello at the block port."""
    error: str = ""
    grpc_error: str = ""
    refused: str = ""
    """Why gRPC refuses this principal, which may use objects nevertheless; empty: it does not."""
    grpc_endpoint: str = ""
    version: str = ""
    awaited: tuple[str, ...] = ()
    """Nodes that a master waits for after its start."""
    http: HttpAnswer = HttpAnswer()


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What is known of a node."""

    node_id: str
    state: str
    endpoint: str = ""
    """Its block port; empty: it offers none."""
    problem: str = ""
    """Why the master tells clients nothing of it."""
    answers: bool = False
    """Whether its block port answered, a refusal too."""
    error: str = ""
    http: HttpAnswer = HttpAnswer()
    peer: Mapping[str, Any] | None = None
    """Its row of Store.peers()."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster, as the checks see it."""

    version: str
    """Of this client."""
    master: MasterFacts
    nodes: tuple[NodeFacts, ...] = ()
    connect: Callable[[str], Store] | None = None
    """Opens a store with a transport ("auto", "tcp") in a namespace of the doctor's own; None: the
    cluster cannot be used."""

    @property
    def alive(self) -> list[NodeFacts]:
        """Nodes that serve."""
        return [node for node in self.nodes if node.state in ("alive", "draining")]


def token(cluster: Cluster) -> Iterator[Finding]:
    """Whether the token is accepted."""
    master = cluster.master
    if master.token_problem:
        yield fail(master.token_problem, "chmod 0600, or another --token-file")
    elif master.status is Status.Unauthenticated and "TLS" in master.error:
        yield fail(
            master.error,
            "--tls-ca with the authorities of the servers' certificates, and --tls-cert and "
            "--tls-key where they ask for one",
        )
    elif master.status is Status.Unauthenticated:
        given = master.token_file is not None
        words = f"the token of {master.token_file} is refused" if given else "a token is required"
        yield fail(
            f"{words}: {master.error}",
            "--token-file with a line that the auth_token_file of master and nodes has, too",
        )
    elif master.status is Status.PermissionDenied:
        yield fail(
            f"the principal may not do this: {master.error}",
            "add the tenant to its line in auth_token_file, or use another --tenant",
        )
    elif master.status is Status.Ok:
        words = "accepted" if master.token_file else "not needed: the master asks for none"
        yield ok(f"the token is {words}")


def master(cluster: Cluster) -> Iterator[Finding]:
    """Block port, gRPC and HTTP of the master."""
    facts = cluster.master
    if facts.token_problem:
        return  # nobody was asked
    if facts.status in (Status.Unauthenticated, Status.PermissionDenied):
        yield ok(f"a master answers at {', '.join(facts.addresses)}")
        return
    if facts.status is not Status.Ok:
        if facts.is_named:
            yield fail(facts.error, "start kvstore-master, or correct --master; see its log")
        else:
            yield warn(
                f"no cluster was checked: {facts.error}", "name its master: --master HOST:PORT"
            )
        return
    where = "one of " if len(facts.addresses) > 1 else ""
    yield ok(f"the master answers at {where}{', '.join(facts.addresses)}")
    if facts.refused:
        yield warn(
            f"nodes were not asked for health and versions: {facts.refused}",
            "--token-file of an operator, to check these, too",
        )
        return
    if facts.grpc_error:
        yield fail(
            f"gRPC at {facts.grpc_endpoint}: {facts.grpc_error}",
            "set the master's advertise_host to what this host reaches, and open grpc_port (50052)",
        )
    else:
        yield ok(f"gRPC answers at {facts.grpc_endpoint}")
    if facts.awaited:
        yield warn(
            f"the master has just started; puts wait for {', '.join(facts.awaited)}",
            "start these nodes, or kvstore forget NODE",
        )
    if facts.http.error:
        yield fail(
            f"HTTP at {facts.http.endpoint or 'no endpoint'}: {facts.http.error}",
            "open the master's http_port (9080); metrics and console need it",
        )
    elif facts.http.endpoint:
        yield ok(f"HTTP answers at {facts.http.endpoint}")


def nodes(cluster: Cluster) -> Iterator[Finding]:
    """State of each node, and whether its ports answer from here."""
    if cluster.master.status is not Status.Ok or cluster.master.grpc_error:
        return
    if not cluster.alive:
        yield fail("no node is alive: puts and gets fail", "start kvstore-node, and see its log")
    for node in cluster.nodes:
        yield from _node(node)


def _node(node: NodeFacts) -> Iterator[Finding]:
    name = node.node_id
    if node.state == "dead":
        yield warn(
            f"{name} is dead: what it holds is missing",
            f"start it again, or kvstore forget {name}; see its log",
        )
        return
    if node.state == "restarting":
        yield warn(
            f"{name} is being restarted: what it holds is missing until it is back",
            "ask again in a minute",
        )
        return
    if node.problem:
        yield fail(
            f"{name} is not told to clients: {node.problem}",
            "set its advertise_host to what the master reaches, and open its port",
        )
    if node.endpoint and not node.answers:
        yield fail(
            f"{name} does not answer at {node.endpoint}: {node.error}",
            "if it hangs, restart it; else open its port to this host, or correct advertise_host",
        )
    elif node.endpoint:
        yield ok(f"{name} is {node.state}, and answers at {node.endpoint}")
    yield from _http(node)


def _http(node: NodeFacts) -> Iterator[Finding]:
    http = node.http
    if not http.endpoint:
        return
    if http.error:
        yield warn(
            f"{node.node_id}: HTTP at {http.endpoint}: {http.error}",
            "open its http_port to this host; only metrics and health need it",
        )
        return
    lacks = [f"{name} {http.details[name]}" for name in _DEGRADED if http.details.get(name)]
    if not http.ready:
        link = http.details.get("link")  # details are for requests with a token, if there are any
        why = f" (link to the master: {link})" if link else ""
        yield fail(
            f"{node.node_id} is not ready{why}",
            f"see its log and {http.endpoint}/readyz",
        )
    elif lacks:
        yield warn(f"{node.node_id} serves, but {'; '.join(lacks)}", "see its log for the setting")


def versions(cluster: Cluster) -> Iterator[Finding]:
    """Versions of client, master and nodes."""
    found = {"the master": cluster.master.version}
    found |= {node.node_id: node.http.version for node in cluster.nodes}
    known = {name: version for name, version in found.items() if version}
    others = {name: version for name, version in known.items() if version != cluster.version}
    if known and not others:
        yield ok(f"client and {len(known)} servers have version {cluster.version}")
    for name, version in others.items():
        said = f"{name} has version {version}, this client {cluster.version}"
        fix = "install one version everywhere; nodes first, then the master, then clients"
        if _work_together(version, cluster.version):
            yield warn(f"{said}; they work together", fix)
        else:
            yield fail(f"{said}; only neighbouring minor versions work together", fix)


def _work_together(one: str, other: str) -> bool:
    """Whether two versions differ by one minor version at most."""
    try:
        (major, minor), (its_major, its_minor) = (
            [int(part) for part in version.split(".")[:2]] for version in (one, other)
        )
    except ValueError:
        return False
    return major == its_major and abs(minor - its_minor) <= 1


def clocks(cluster: Cluster) -> Iterator[Finding]:
    """Wall clocks of the servers, against this host's."""
    answers = {"the master": cluster.master.http}
    answers |= {node.node_id: node.http for node in cluster.nodes}
    known = {name: http.ahead_s for name, http in answers.items() if http.ahead_s is not None}
    wrong = {name: ahead for name, ahead in known.items() if abs(ahead) > _MOST_SKEW_S}
    for name, ahead in wrong.items():
        words = "ahead of" if ahead > 0 else "behind"
        yield warn(
            f"the clock of {name} is {abs(ahead):,.0f} s {words} this host's",
            "run chronyd or systemd-timesyncd on both hosts",
        )
    if known and not wrong:
        yield ok(f"the clocks of {len(known)} servers agree with this host's")


def certificates(cluster: Cluster) -> Iterator[Finding]:
    """How long the servers' certificates are valid."""
    answers = {"the master": cluster.master.http}
    answers |= {node.node_id: node.http for node in cluster.nodes}
    known = {name: http.certificate_s for name, http in answers.items()}
    left = {name: seconds for name, seconds in known.items() if seconds is not None}
    late = {name: seconds for name, seconds in left.items() if seconds < _LEAST_CERTIFICATE_S}
    for name, seconds in late.items():
        words = "has expired" if seconds <= 0 else f"expires in {seconds / 3600:,.0f} hours"
        yield (fail if seconds <= 0 else warn)(
            f"the certificate of {name} {words}",
            "replace the files of its tls: it takes them without a restart",
        )
    if left and not late:
        days = min(left.values()) / 86_400
        yield ok(f"the certificates of {len(left)} servers are valid for {days:,.0f} days or more")


def _is_elsewhere(peer: Mapping[str, Any]) -> bool:
    """Whether nobody expects this host to map the node's memory."""
    if peer.get("cause") == "not_offered":
        return not peer.get("same_host")
    return peer.get("cause") in (None, "other_host", "transport")


def paths(cluster: Cluster) -> Iterator[Finding]:
    """How this host reaches each node's objects, and why not through its memory."""
    for node in cluster.alive:
        peer = node.peer
        if peer is None:
            continue
        path, why, setting = peer.get("path"), peer.get("why"), peer.get("setting")
        if path is None:
            yield fail(
                f"{node.node_id} cannot be reached: {why}", setting or "add tcp to its transports"
            )
        elif path == "shm" or _is_elsewhere(peer):
            yield ok(f"{node.node_id} is reached over {path}: {why}")
        else:
            fix = setting or "see whether it hangs (nodes), and its log"
            yield warn(f"{node.node_id} is on this host, but reached over {path}: {why}", fix)
