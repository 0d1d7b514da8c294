"""Every gRPC call, HTTP path and message of the block protocol, with every kind of credentials.

The rows are compared with what the processes serve: a call, path or message without a row fails.
"""

from __future__ import annotations

import http.client
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore._proto import master_pb2, node_pb2, types_pb2
from kvstore.errors import Status
from tests.support.cluster import Cluster
from tests.support.control import DEFAULT, control, refusal
from tests.support.processes import Daemon, wait_for
from tests.support.wire import (
    AUTH,
    CHALLENGE,
    ERROR,
    HELLO,
    HELLO_MAGIC,
    PING,
    PONG,
    REFUSED,
    Connection,
    LocalClient,
    Refusal,
    fields,
    frame,
    hello_body,
    keys_field,
    mint,
    number,
    of_token,
    text,
)
from tests.unit.test_proto import committed
from tests.unit.test_wire_document import message_fields, message_types

pytestmark = pytest.mark.cluster

SECRET = "{}-secret-0123456789"
TOKENS = {
    "client": ("client", "default", ""),
    "stranger": ("client", "elsewhere", ""),
    "a": ("node", "*", ""),
    "paper": ("node", "*", ""),
    "local": ("operator", "default", ""),
    "operator": ("operator", "*", ""),
    "revoked": ("operator", "*", ""),
    # Scopes: one verb each, and every verb on some keys. The requests here name the key "k".
    "only-read": ("client", "default", "verbs=read"),
    "only-write": ("client", "default", "verbs=write"),
    "only-remove": ("client", "default", "verbs=remove"),
    "only-list": ("client", "default", "verbs=list"),
    "only-watch": ("client", "default", "verbs=watch"),
    "only-admin": ("operator", "*", "verbs=admin"),
    "own-keys": ("client", "default", "keys=k"),
    "other-keys": ("client", "default", "keys=other/"),
}
CLIENT, NODE, OPERATOR = 0, 1, 2


def line(name: str) -> str:
    role, tenants, scopes = TOKENS[name]
    return f"{name} {role} {tenants} {SECRET.format(name)} {scopes}\n"


def minted(name: str, seconds: int, scopes: str = "") -> str:
    """A token of a principal that is valid for so long."""
    claims = f"exp={int(time.time()) + seconds}{scopes}"
    return mint(SECRET.format(name).encode(), name.encode(), claims.encode()).decode()


# What is sent as credentials over gRPC and HTTP. The second half is valid.
INVALID = {
    "none": None,
    "no bearer": f"Basic client:{SECRET.format('client')}",
    "malformed": "Bearer",
    "odd bytes": "Bearer client:\xfc\xff",
    "wrong": "Bearer client:another-secret-0123456789",
    "unknown": f"Bearer nobody:{SECRET.format('client')}",
    "another's": f"Bearer operator:{SECRET.format('client')}",
    "revoked": f"Bearer revoked:{SECRET.format('revoked')}",
    "expired": f"Bearer client:{minted('client', -10)}",
    "forged": f"Bearer client:{minted('client', 3600).replace('exp=', 'exp=1')}",
}
VALID = {name: f"Bearer {name}:{SECRET.format(name)}" for name in TOKENS if name != "revoked"}
# Both may what "only-read" may: claims add nothing to the scopes of their principal.
MINTED = {
    "minted-read": f"Bearer client:{minted('client', 3600, '+verbs=read')}",
    "minted-wider": f"Bearer only-read:{minted('only-read', 3600, '+verbs=read,write,remove')}",
}
VALID |= MINTED
ANYBODY = frozenset({*INVALID, *VALID})
EVERYBODY = frozenset(VALID)
SCOPED = frozenset(name for name, (_, _, scopes) in TOKENS.items() if scopes)
CLIENTS = frozenset({"client", "stranger", "local", "operator", *SCOPED, *MINTED})
OF_TENANT = frozenset({"client", "local", "operator"})
OF_ALL = frozenset({"operator"})
ADMINS = OF_ALL | {"only-admin"}
PAPER = frozenset({"paper"})


def with_verb(verb: str, keys: str = "k") -> frozenset[str]:
    """Who may do this with the tenant's key "k", or with "all" of its keys, or with "any" key."""
    covering = {"k": {"own-keys"}, "any": {"own-keys", "other-keys"}, "all": set[str]()}
    return (
        OF_TENANT | {f"only-{verb}"} | covering[keys] | (set(MINTED) if verb == "read" else set())
    )


class Guarded:
    """A master and a node with tokens, and one token that was revoked since."""

    def __init__(self, folder: Path) -> None:
        self.tokens = folder / "tokens"
        self.tokens.touch(0o600)
        self.tokens.write_text("".join(map(line, TOKENS)))
        (folder / "operator").touch(0o600)
        (folder / "operator").write_text(line("operator"))
        config = folder / "master.json"
        config.write_text('{"log_level": "debug"}')
        options = ["--auth-token-file", str(self.tokens), "--config", str(config)]
        self.cluster = Cluster(folder, options, str(folder / "operator"))
        self.master = self.cluster.master
        self.node = self.cluster.start_node(
            "a", auth_token_file=str(self.tokens), rest_api="all", log_level="debug"
        )
        self.endpoints = {
            "master": self.cluster.address,
            "node": str(self.cluster.cli("nodes")[0]["endpoints"]["tcp"]),
        }

    def revoke(self) -> None:
        for endpoint in self.endpoints.values():
            assert hello(endpoint, "revoked", OPERATOR) == 0, "it is valid at first"
        self.tokens.write_text("".join(line(name) for name in TOKENS if name != "revoked"))
        for daemon in (self.master, self.node):
            daemon.signal(signal.SIGHUP)
        for endpoint in self.endpoints.values():
            wait_for(partial(is_refused, endpoint), "the token to be revoked")


def is_refused(endpoint: str) -> bool:
    return hello(endpoint, "revoked", OPERATOR) == Status.Unauthenticated


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = Guarded(tmp_path_factory.mktemp("credentials"))
    try:
        made.revoke()
        yield made
    finally:
        made.cluster.close()


def judged(outcomes: dict[str, str], may: frozenset[str]) -> dict[str, tuple[str, str]]:
    """Where what happened is not what had to happen: credentials, wanted and found."""
    wrong = {}
    for name, found in outcomes.items():
        wanted = "let through" if name in may else "denied" if name in VALID else "no token"
        if found != wanted:
            wrong[name] = (wanted, found)
    return wrong


# --- gRPC ---


@dataclass(frozen=True)
class Rpc:
    """A request of a call, and who may make it."""

    request: Any
    may: frozenset[str]


_NOBODY = "nobody"
RPCS: dict[str, list[Rpc]] = {
    "kvstore.v1.NodeRegistry/Register": [
        Rpc(
            node_pb2.RegisterRequest(
                node_id="paper",
                incarnation=7,
                endpoints=types_pb2.Endpoints(tcp="tcp://127.0.0.1:1"),
            ),
            PAPER,
        )
    ],
    "kvstore.v1.NodeRegistry/Heartbeat": [
        Rpc(node_pb2.HeartbeatRequest(node_id="paper", session_id=1), PAPER)
    ],
    "kvstore.v1.NodeRegistry/Unregister": [
        Rpc(node_pb2.UnregisterRequest(node_id="paper", session_id=1), PAPER)
    ],
    "kvstore.v1.Master/Locate": [
        Rpc(master_pb2.LocateRequest(namespace=DEFAULT, keys=["k"]), with_verb("read"))
    ],
    "kvstore.v1.Master/Watch": [
        Rpc(master_pb2.WatchRequest(namespace=DEFAULT), with_verb("watch", "any")),
        # Each sees its own tenants and keys.
        Rpc(master_pb2.WatchRequest(), with_verb("watch", "any") | {"stranger"}),
    ],
    "kvstore.v1.Master/ListNodes": [Rpc(master_pb2.ListNodesRequest(), EVERYBODY)],
    "kvstore.v1.Master/Drain": [
        Rpc(master_pb2.DrainRequest(node_id=_NOBODY), ADMINS),
        Rpc(master_pb2.DrainRequest(node_id="a", cancel=True), ADMINS),
    ],
    "kvstore.v1.Master/Forget": [Rpc(master_pb2.ForgetRequest(node_id=_NOBODY), ADMINS)],
    "kvstore.v1.Master/Snapshot": [
        Rpc(master_pb2.SnapshotRequest(node_id=_NOBODY), ADMINS),
        Rpc(master_pb2.SnapshotRequest(node_id=_NOBODY, request=1), ADMINS),
    ],
    "kvstore.v1.Master/Flush": [
        Rpc(master_pb2.FlushRequest(namespace=DEFAULT, timeout_ms=500), with_verb("remove", "all"))
    ],
    "kvstore.v1.Master/Remove": [
        Rpc(
            master_pb2.RemoveRequest(namespace=DEFAULT, keys=["k"], timeout_ms=500),
            with_verb("remove"),
        )
    ],
    "kvstore.v1.Master/ListKeys": [
        Rpc(master_pb2.ListKeysRequest(namespace=DEFAULT), with_verb("list", "all")),
        Rpc(master_pb2.ListKeysRequest(namespace=DEFAULT, prefix="k/"), with_verb("list")),
    ],
    "kvstore.v1.Master/Inspect": [
        Rpc(master_pb2.InspectRequest(namespace=DEFAULT, key="k"), with_verb("read"))
    ],
    "kvstore.v1.Master/Status": [Rpc(master_pb2.StatusRequest(), EVERYBODY)],
    "kvstore.v1.Master/Handover": [Rpc(master_pb2.HandoverRequest(), ADMINS)],
    "kvstore.v1.Master/Reuse": [Rpc(master_pb2.ReuseRequest(), EVERYBODY)],
    "kvstore.v1.Master/ListNamespaces": [
        Rpc(master_pb2.ListNamespacesRequest(tenant="default"), with_verb("list", "all")),
        Rpc(master_pb2.ListNamespacesRequest(), OF_ALL),
    ],
}
# Open to everybody, so that load balancers and grpcurl need no token.
OPEN_RPCS = {
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/List",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
DENIED = {"UNAUTHENTICATED": "no token", "PERMISSION_DENIED": "denied"}
# How a call may end that was let through: these are answers about what it asks for.
ANSWERS = {"OK", "NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED"}


def served_rpcs(channel: grpc.Channel) -> set[str]:
    """Every call of every service, as the master's own reflection tells."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    known = {
        f"{file.package}.{service.name}": [method.name for method in service.method]
        for file in committed().file
        for service in file.service
    }
    for module in (health_pb2, reflection_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            known[service.full_name] = [method.name for method in service.methods]
    found = {one.name for one in answer.list_services_response.service}
    assert found <= set(known), "a service whose calls this test does not know"
    return {f"{service}/{method}" for service in found for method in known[service]}


def call(channel: grpc.Channel, name: str, request: Any, authorization: str | None) -> str:
    """Make a call: what became of it."""
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    if authorization is not None:
        odd = not authorization.isascii()  # only a binary header may hold it: under another name
        metadata = (("authorization-bin" if odd else "authorization", authorization.encode()),)
    methods = (f"/{name}", type(request).SerializeToString, lambda raw: raw)
    try:
        if name.endswith("Master/Watch"):
            stream = channel.unary_stream(*methods)(request, timeout=10, metadata=metadata)
            next(iter(stream))
            stream.cancel()
        else:
            channel.unary_unary(*methods)(request, timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        status = error.code().name
        if status in DENIED:
            assert refusal(error)[1] in (Status.Unauthenticated, Status.PermissionDenied)
            return DENIED[status]
        return "let through" if status in ANSWERS else f"{status}: {error.details()}"
    return "let through"


def test_every_rpc_has_a_row(guarded: Guarded) -> None:
    with control(guarded.master) as plane:
        assert served_rpcs(plane.channel) == {*RPCS} | OPEN_RPCS
        reply = health_pb2_grpc.HealthStub(plane.channel).Check(
            health_pb2.HealthCheckRequest(), timeout=10
        )
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("name", RPCS)
def test_rpcs(guarded: Guarded, name: str) -> None:
    with control(guarded.master) as plane:
        for row in RPCS[name]:
            outcomes = {
                who: call(plane.channel, name, row.request, token)
                for who, token in {**INVALID, **VALID}.items()
            }
            assert not judged(outcomes, row.may), row


# --- HTTP ---

LISTERS = with_verb("list", "all") | {"stranger"}
ABOUT_KEYS = "tenant_id=default&namespace=m"
PATHS: dict[str, dict[str, tuple[str, frozenset[str]]]] = {
    "master": {
        "GET /healthz": ("/healthz", ANYBODY),
        "GET /readyz": ("/readyz", ANYBODY),
        "GET /metrics": ("/metrics", ANYBODY),
        "GET /health": ("/health", ANYBODY),
        "GET /get_all_segments": ("/get_all_segments", CLIENTS),
        "GET /get_all_keys": (f"/get_all_keys?{ABOUT_KEYS}", with_verb("list", "all")),
        "GET /query_key": (f"/query_key?key=k&{ABOUT_KEYS}", with_verb("read")),
        "GET /batch_query_keys": (f"/batch_query_keys?keys=k,k2&{ABOUT_KEYS}", with_verb("read")),
        "GET /sessions": ("/sessions", ADMINS),
        "DELETE /sessions": ("/sessions?principal=nobody", ADMINS),
        # The console's files hold no data.
        "GET /console": ("/console", ANYBODY),
        "GET /console/": ("/console/", ANYBODY),
        "GET /console/{file}": ("/console/main.js", ANYBODY),
        "GET /console/api/overview": ("/console/api/overview?history=1", EVERYBODY),
        "GET /console/api/nodes": ("/console/api/nodes", EVERYBODY),
        "GET /console/api/namespaces": ("/console/api/namespaces", LISTERS),
        "GET /console/api/prefixes": ("/console/api/prefixes", LISTERS),
        "GET /console/api/events": ("/console/api/events", ADMINS),
        "GET /console/api/explain": (
            "/console/api/explain?tenant=default&key=k",
            with_verb("read"),
        ),
    },
    "node": {
        "GET /healthz": ("/healthz", ANYBODY),
        "GET /readyz": ("/readyz", ANYBODY),
        "GET /metrics": ("/metrics", ANYBODY),
        "GET /sessions": ("/sessions", ADMINS),
        "DELETE /sessions": ("/sessions?principal=nobody", ADMINS),
        "PUT /api/put": (f"/api/put?{ABOUT_KEYS}", with_verb("write")),
        "GET /api/get/{key}": (f"/api/get/k?{ABOUT_KEYS}", with_verb("read")),
        "GET /api/exist/{key}": (f"/api/exist/k?{ABOUT_KEYS}", with_verb("read")),
        "DELETE /api/remove/{key}": (f"/api/remove/k?{ABOUT_KEYS}", with_verb("remove")),
        # It tells how many there were, for which it lists them.
        "DELETE /api/remove_all": (f"/api/remove_all?{ABOUT_KEYS}", OF_TENANT),
    },
}


def served_paths(daemon: Daemon) -> set[str]:
    """What the process's router has, as its log tells."""
    (found,) = set(re.findall(r' routes paths="([^"]+)"', daemon.log.read_text()))
    return {path for path in found.split(",") if not path.startswith("HEAD ")}


def ask(daemon: Daemon, method: str, path: str, authorization: str | None) -> str:
    """Make a request: what became of it."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.ports["http_port"], timeout=20)
    headers = {} if authorization is None else {"Authorization": authorization}
    body = b'{"key": "k", "value": "v"}' if method == "PUT" else None
    try:
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    if reply.status in (401, 403):
        return "no token" if reply.status == 401 else "denied"
    assert reply.status in (200, 308, 404), content
    return "let through"


@pytest.mark.parametrize("process", PATHS)
def test_every_path_has_a_row(guarded: Guarded, process: str) -> None:
    daemon = guarded.master if process == "master" else guarded.node
    assert served_paths(daemon) == {*PATHS[process]}


@pytest.mark.parametrize(
    ("process", "name"), [(process, name) for process in PATHS for name in PATHS[process]]
)
def test_paths(guarded: Guarded, process: str, name: str) -> None:
    daemon = guarded.master if process == "master" else guarded.node
    path, may = PATHS[process][name]
    method = name.split()[0]
    for asked in (method, "HEAD") if method == "GET" else (method,):
        outcomes = {
            who: ask(daemon, asked, path, token) for who, token in {**INVALID, **VALID}.items()
        }
        assert not judged(outcomes, may)


# --- the block protocol ---


def hello(
    endpoint: str,
    who: str,
    role: int,
    *,
    tenant: str = "default",
    secret: str | None = None,
    session_id: int = 0,
) -> int:
    """Say hello and leave: 0, or the status of the refusal."""
    try:
        with session(endpoint, who, role, tenant=tenant, secret=secret, session_id=session_id):
            return 0
    except Refusal as refused:
        return int(refused.code)


def session(
    endpoint: str,
    who: str,
    role: int,
    *,
    tenant: str = "default",
    secret: str | None = None,
    session_id: int = 0,
    node_epoch: int = 0,
) -> Connection:
    """Open a session as a principal; raises Refusal."""
    extra = number(6, role, 1)
    if role == NODE:
        extra += text(13, who.encode()) + number(12, session_id, 8) + number(14, node_epoch, 4)
    token = SECRET.format(who) if secret is None else secret
    proving, claims = of_token(token.encode())
    extra += claims
    body = hello_body(tenant=tenant.encode(), principal=who.encode(), token=b"x", extra=extra)
    connection = Connection(endpoint)
    try:
        connection.handshake(body, token=proving)
    except BaseException:
        connection.close()
        raise
    return connection


U, D, OK = int(Status.Unauthenticated), int(Status.PermissionDenied), 0
# Who comes as what to which tenant, and the answer of master and node alike.
HELLOS = [
    ("client", CLIENT, "default", OK),
    ("client", CLIENT, "elsewhere", D),
    ("client", OPERATOR, "default", D),
    ("client", NODE, "default", D),
    ("stranger", CLIENT, "default", D),
    ("stranger", CLIENT, "elsewhere", OK),
    ("a", NODE, "default", OK),
    ("a", CLIENT, "default", D),
    ("a", OPERATOR, "default", D),
    ("local", OPERATOR, "default", OK),
    ("local", CLIENT, "default", OK),
    ("local", OPERATOR, "elsewhere", D),
    ("operator", OPERATOR, "elsewhere", OK),
    ("operator", CLIENT, "elsewhere", OK),
    ("operator", NODE, "default", D),
    ("only-read", CLIENT, "default", OK),
    ("only-read", CLIENT, "elsewhere", D),
    ("only-read", OPERATOR, "default", D),
    ("only-admin", OPERATOR, "elsewhere", OK),
    ("only-admin", NODE, "default", D),
    ("other-keys", CLIENT, "default", OK),
    ("revoked", OPERATOR, "default", U),
    ("revoked", CLIENT, "default", U),
    ("nobody", CLIENT, "default", U),
]


@pytest.mark.parametrize("server", ["master", "node"])
def test_hellos(guarded: Guarded, server: str) -> None:
    endpoint = guarded.endpoints[server]
    for who, role, tenant, wanted in HELLOS:
        found = hello(endpoint, who, role, tenant=tenant)
        assert found == wanted, (who, role, tenant)
        if wanted == OK:
            assert hello(endpoint, who, role, tenant=tenant, secret="x" * 20) == U
    for wanted, name, seconds, scopes, role, tenant in (
        (OK, "client", 3600, "", CLIENT, "default"),
        (OK, "client", 3600, "+tenants=default", CLIENT, "default"),
        (D, "client", 3600, "", CLIENT, "elsewhere"),
        (D, "operator", 3600, "+tenants=default", CLIENT, "elsewhere"),
        (OK, "operator", 3600, "", OPERATOR, "elsewhere"),
        (D, "client", 3600, "", OPERATOR, "default"),
        (D, "a", 3600, "", NODE, "default"),
        (U, "client", -10, "", CLIENT, "default"),
        (U, "client", 2 * 86400, "", CLIENT, "default"),
        (U, "client", 3600, "+fly", CLIENT, "default"),
        (U, "revoked", 3600, "", OPERATOR, "default"),
    ):
        token = minted(name, seconds, scopes)
        assert hello(endpoint, name, role, tenant=tenant, secret=token) == wanted, token
    with Connection(endpoint) as connection, pytest.raises(Refusal) as refused:
        connection.handshake()  # without a token
    assert refused.value.code == U
    for proof in (b"", b"short", b"x" * 32, b"x" * 64):
        with Connection(endpoint) as connection:
            body = hello_body(principal=b"client", token=b"x")
            connection.send(frame(HELLO, body, request=HELLO_MAGIC))
            assert connection.receive().kind == CHALLENGE
            connection.send(frame(AUTH, text(1, proof)))
            got = connection.receive()
            assert got.kind == REFUSED
            assert Refusal(got.body).code in (U, Status.ProtocolError), proof


# The sessions in which each message is answered; everywhere else it is refused. A "link" is that
# of a registered node at its master, an "unlinked" one that of a node without a registration. A
# "mapped" one has confirmed its slot.
MASTERS = frozenset({"master client", "master operator"})
LINK = frozenset({"master link"})
MAPPED = frozenset({"node mapped"})
NODES = frozenset({"node client", "node operator"}) | MAPPED
PEER = frozenset({"node peer"})
SESSIONS = MASTERS | LINK | NODES | PEER | {"master unlinked"}
NOWHERE: frozenset[str] = frozenset()
MESSAGES: dict[str, frozenset[str]] = {
    "Hello": NOWHERE,
    "Challenge": NOWHERE,
    "Auth": NOWHERE,
    "Welcome": NOWHERE,
    "Refused": NOWHERE,
    "Error": NOWHERE,
    "StatusReply": NOWHERE,
    "Ping": SESSIONS,
    "Pong": LINK,
    "Lookup": MASTERS,
    "LookupReply": NOWHERE,
    "Nodes": MASTERS,
    "NodesReply": NOWHERE,
    "Remove": MASTERS,
    "RemoveReply": NOWHERE,
    "List": MASTERS,
    "ListReply": NOWHERE,
    "Inspect": MASTERS,
    "InspectReply": NOWHERE,
    "SetPin": MASTERS,
    "Flush": MASTERS,
    "FlushReply": NOWHERE,
    "SlotReady": NODES | PEER,
    "Reserve": MAPPED,
    "ReserveReply": NOWHERE,
    "Commit": NODES,
    "Abort": NODES,
    "Get": NODES,
    "GetReply": NOWHERE,
    "Put": NODES,
    "Lease": NODES,
    "LeaseReply": NOWHERE,
    "LeaseRenew": NODES,
    "LeaseRelease": NODES,
    "Hold": NODES,
    "Unhold": NODES,
    "Resolve": NODES,
    "ResolveReply": NOWHERE,
    "CopyPut": PEER,
    "Stats": NODES | PEER,
    "StatsReply": NOWHERE,
    "Prefetch": NODES,
    "Explain": NODES,
    "ExplainReply": NOWHERE,
    "UcxOpen": NODES,
    "UcxOpenReply": NOWHERE,
    "UcxGet": NODES,
    "UcxGetReply": NOWHERE,
    "UcxDone": NODES,
    "UcxPut": NODES,
    "Claim": LINK,
    "ClaimReply": NOWHERE,
    "Abandon": LINK,
    "Announce": LINK,
    "AnnounceReply": NOWHERE,
    "Withdraw": LINK,
    "Ops": NOWHERE,
    "OpsAck": LINK,
    "Copy": NOWHERE,
    "CopyDone": LINK,
    "Heartbeat": LINK,
    "HeartbeatReply": NOWHERE,
    "UcxReady": NOWHERE,
    "UcxGrow": NOWHERE,
    "UcxSlice": NOWHERE,
    "UcxPull": NOWHERE,
    "UcxPulled": NOWHERE,
}
# What a message that clients send needs of a principal with scopes; None: it has to be without.
NOTHING = ""
VERBS: dict[str, str | None] = {
    "Ping": NOTHING,
    "Nodes": NOTHING,
    "Stats": NOTHING,
    "SlotReady": NOTHING,
    "UcxDone": NOTHING,
    **dict.fromkeys(("Lookup", "Inspect", "Get", "Lease", "LeaseRenew", "LeaseRelease"), "read"),
    **dict.fromkeys(("Hold", "Unhold", "Resolve", "Prefetch", "Explain", "UcxOpen"), "read"),
    **dict.fromkeys(("SetPin", "Commit", "Abort", "Put"), "write"),
    **dict.fromkeys(("Remove", "Flush"), "remove"),
    "List": "list",
    # These need mapped memory, or a key of it.
    **dict.fromkeys(("Reserve", "UcxGet", "UcxPut"), None),
}
ABOUT_EVERY_KEY = {"List", "Flush"}
SCOPED_SESSIONS = sorted(
    f"{server} {who}" for server in ("master", "node") for who in {*SCOPED, "minted-read"}
)
# All others are sent without a body. One of these would name no node, which is refused, too.
BODIES = {"Heartbeat": text(1, node_pb2.HeartbeatRequest(node_id="paper").SerializeToString())}
REFUSALS = {
    int(status)
    for status in (
        Status.Unauthenticated,
        Status.PermissionDenied,
        Status.Unsupported,
        Status.ProtocolError,
    )
}


def open_session(guarded: Guarded, kind: str) -> Connection:
    server, _, role = kind.partition(" ")
    endpoint = guarded.endpoints[server]
    if role == "link":
        with control(guarded.master, f"paper:{SECRET.format('paper')}") as plane:
            reply = plane.register("paper")
        return session(
            endpoint, "paper", NODE, session_id=reply.session_id, node_epoch=reply.node_epoch
        )
    if role == "mapped":
        unix = str(guarded.node.ports["unix"])
        secret = SECRET.format("client").encode()
        return LocalClient(unix, hello_body(principal=b"client", token=b"x"), secret).connection
    if role in ("unlinked", "peer"):
        return session(endpoint, "paper", NODE)
    if role == "minted-read":
        return session(endpoint, "client", CLIENT, secret=minted("client", 3600, "+verbs=read"))
    return session(endpoint, role, OPERATOR if TOKENS[role][0] == "operator" else CLIENT)


def outcome(connection: Connection, kind: int, body: bytes) -> str:
    """Send a message, then a Ping: what became of it."""
    connection.send(frame(kind, body, request=7) + frame(PING, number(1, 1, 8), request=8))
    try:
        while True:
            got = connection.receive()
            if got.kind == ERROR and got.request != 8:
                code = int(Refusal(got.body).code)
                return f"refused: {Status(code).name}" if code in REFUSALS else "answered"
            if got.request == 8 or (kind == PING and got.kind == PONG):
                return "answered"
    except (TimeoutError, ConnectionError):
        return "closed"


def test_every_message_has_a_row() -> None:
    assert {*message_types()} == {*MESSAGES}


@pytest.mark.parametrize("kind", sorted(SESSIONS))
def test_messages(guarded: Guarded, kind: str) -> None:
    wrong = {}
    for name, wire_number in message_types().items():
        with open_session(guarded, kind) as connection:
            found = outcome(connection, wire_number, BODIES.get(name, b""))
        if (found == "answered") != (kind in MESSAGES[name]):
            wrong[name] = found
    assert not wrong


def named_key(name: str) -> bytes | None:
    """A body that names the key "k", for a message that names keys."""
    for tag, field in message_fields()[name].items():
        if field in ("key", "keys"):
            return text(tag, b"k") if field == "key" else keys_field(tag, [b"k"])
    return None


def granted(name: str, who: str) -> bool:
    """Whether a principal with scopes may send a message."""
    verb = VERBS[name]
    if verb == NOTHING or verb is None:
        return verb == NOTHING
    if who == "own-keys":
        return name not in ABOUT_EVERY_KEY
    if who == "other-keys":
        return name not in ABOUT_EVERY_KEY and named_key(name) is None
    return who in (f"only-{verb}", f"minted-{verb}")


@pytest.mark.parametrize("kind", SCOPED_SESSIONS)
def test_messages_out_of_scope(guarded: Guarded, kind: str) -> None:
    """Beside what every session of this server is refused: verbs that the scope lacks, and keys."""
    server, _, who = kind.partition(" ")
    answered = {name for name, kinds in MESSAGES.items() if kinds & {f"{server} client", *MAPPED}}
    if server == "master":
        answered -= {name for name in answered if "master client" not in MESSAGES[name]}
    wrong = {}
    for name in answered:
        with open_session(guarded, kind) as connection:
            found = outcome(connection, message_types()[name], named_key(name) or b"")
        if (found == "answered") != granted(name, who):
            wrong[name] = found
        elif found != "answered":
            assert found == "refused: PermissionDenied", name
    assert not wrong


def test_every_message_of_a_client_has_a_verb() -> None:
    of_clients = {name for name, kinds in MESSAGES.items() if kinds & (MASTERS | NODES)}
    assert {*VERBS} == of_clients


@pytest.mark.parametrize("server", ["master", "node"])
def test_messages_before_the_proof(guarded: Guarded, server: str) -> None:
    """Whatever comes in place of Hello or of Auth ends the connection, and nothing is done."""
    for name, wire_number in message_types().items():
        if name == "Hello":
            continue
        with Connection(guarded.endpoints[server]) as connection:
            connection.send(frame(wire_number, request=HELLO_MAGIC))
            assert refused_and_closed(connection), name
        if name == "Auth":
            continue
        with Connection(guarded.endpoints[server]) as connection:
            body = hello_body(principal=b"operator", token=b"x")
            connection.send(frame(HELLO, body, request=HELLO_MAGIC))
            assert connection.receive().kind == CHALLENGE
            connection.send(frame(wire_number, request=HELLO_MAGIC))
            assert refused_and_closed(connection), name


def refused_and_closed(connection: Connection) -> bool:
    got = connection.receive()
    if got.kind != REFUSED or fields(got.body) == {}:
        return False
    with pytest.raises(ConnectionError):
        connection.receive()
    return True


def test_a_missing_row_is_found(guarded: Guarded) -> None:
    """The checks above have been seen to fail."""
    tables: list[tuple[Callable[[], set[str]], dict[str, Any]]] = [
        (lambda: {*message_types()}, MESSAGES),
        (lambda: served_paths(guarded.node), PATHS["node"]),
    ]
    for served, rows in tables:
        for name in rows:
            assert served() != {*rows} - {name}
    assert judged({"client": "let through"}, NOWHERE)
    assert judged({"none": "let through"}, EVERYBODY)
