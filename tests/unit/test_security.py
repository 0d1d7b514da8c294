"""Token files, bearer tokens, roles and tenants; secrets that do not show."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest

from kvstore import scopes, security
from kvstore.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from kvstore.logging import EventFormatter, EventLogger
from kvstore.scopes import ADMINISTRATION, LISTING, Need, Verb
from kvstore.security import ANYBODY, Guard, Principal, Role, Secret

SECRETS = ("0123456789abcdef-client", "0123456789abcdef-node", "0123456789abcdef-ops")
PEER = "10.0.0.7:4711"
FILE = f"""# name role tenants secret
engine  client    default,research  {SECRETS[0]}

node-a  node      *                 {SECRETS[1]}
ops     operator  *                 {SECRETS[2]}
"""


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_file_is_read(tmp_path: Path) -> None:
    engine, node, ops = security.load_principals(write(tmp_path, FILE))
    assert (engine.name, engine.role, engine.tenants) == (
        "engine",
        Role.CLIENT,
        ("default", "research"),
    )
    assert engine.may_use("research") and not engine.may_use("other")
    assert node.role is Role.NODE and node.may_use("any")
    assert ops.native() == ("ops", 2, ["*"], SECRETS[2], [])


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660])
def test_a_file_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        security.load_principals(write(tmp_path, FILE, mode))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no principal"),
        ("# only a comment\n", "no principal"),
        ("a client default\n", "line 1: 3 fields"),
        ("a client default secret-secret-secret extra\n", "line 1: not a word of a scope"),
        ("a client t 0123456789abcdef verbs=read,fly\n", "line 1: no verb is called fly"),
        ("a client t 0123456789abcdef keys=a keys=b\n", "line 1: keys= comes twice"),
        ("a client t 0123456789abcdef verbs=read |\n", "line 1: an empty scope"),
        ("a client t,u 0123456789abcdef tenants=v\n", "line 1: tenants=v is not among"),
        ("a client t 0123456789abcdef verbs=admin\n", "line 1: the verb admin needs"),
        ("a node * 0123456789abcdef verbs=read\n", "line 1: a node .* has no scopes"),
        ("a client t 0123456789abcdef\na client t 0123456789abcdeg keys=a\n", "line 2: .* scope"),
        ("\na king * 0123456789abcdef\n", "line 2: role must be .* not 'king'"),
        ("a client * short\n", "line 1: the secret is shorter"),
        ("a:b client * 0123456789abcdef\n", "colon"),
        ("a client , 0123456789abcdef\n", "no tenants"),
        (f"a client {'t' * 256} 0123456789abcdef\n", "too long"),
        ("a client * 0123456789abcdef\n" * 2, "line 2: second line .* same secret"),
        ("a client * 0123456789abcdef\na client t 0123456789abcdeg\n", "line 2: .* tenants"),
        ("a client * 0123456789abcdef\na operator * 0123456789abcdeg\n", "line 2: .* role"),
        ("".join(f"a client * {i}123456789abcdef\n" for i in range(3)), "line 3: .* at most 2"),
    ],
)
def test_a_wrong_line_is_named_without_its_secret(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(InvalidArgumentError, match=word) as caught:
        security.load_principals(write(tmp_path, text))
    assert "0123456789abcdef" not in str(caught.value)
    assert "tokens" in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="No such file"):
        security.load_principals(tmp_path / "nothing")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        security.load_principals(path)


def test_a_process_finds_itself_in_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, FILE)
    assert security.load_identity(path, (Role.NODE,)).name == "node-a"
    with pytest.raises(InvalidArgumentError, match="2 principals"):
        security.load_identity(path)
    assert security.load_identity(path, name="ops").role is Role.OPERATOR
    with pytest.raises(InvalidArgumentError, match="0 principals"):
        security.load_identity(write(tmp_path, "a node * 0123456789abcdef\n"))


def test_a_secret_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("do-not-show-this")
    principal = Principal("a", Role.CLIENT, ("*",), secret)
    assert "show" not in f"{secret} {secret!r} {principal} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with caplog.at_level(logging.INFO, "kvstore"):
        EventLogger("test").info("event", principal=principal, secret=secret)
    line = EventFormatter().format(caplog.records[0])
    assert "show" not in line and "***" in line


def test_secrets_compare_by_value() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != "a"


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(security.load_principals(write(tmp_path, FILE)))


def test_a_bearer_token_identifies(guard: Guard) -> None:
    assert guard.required
    assert guard.identify(f"Bearer engine:{SECRETS[0]}", PEER).name == "engine"
    assert guard.identify(f"bearer engine:{SECRETS[0]}", PEER).name == "engine"
    ((name, value),) = security.bearer(guard.identify(f"Bearer ops:{SECRETS[2]}", PEER))
    assert name == "authorization" and guard.identify(value, PEER).name == "ops"
    assert security.bearer(None) == ()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer :",
        "Bearer engine",
        "Bearer engine:",
        "Bearer engine:wrong",
        f"Bearer nobody:{SECRETS[0]}",
        "Bearer nobody:",
        "Bearer anybody:",
        f"Basic engine:{SECRETS[0]}",
        f"Bearer ops:{SECRETS[0]}",
        f"Bearer engine:{SECRETS[0]}x",
        "Bearer engine:ü",
    ],
)
def test_anything_else_is_refused(guard: Guard, header: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        guard.identify(header, PEER)


def test_without_a_token_file_everybody_may(tmp_path: Path) -> None:
    guard = Guard(None)
    assert not guard.required
    principal = guard.identify(None, PEER)
    assert principal is ANYBODY
    for role in Role:
        security.require(principal, [role], "any")


def test_a_replaced_token_is_worthless(guard: Guard) -> None:
    guard.replace([Principal("engine", Role.CLIENT, ("*",), Secret("another-secret-16"))])
    with pytest.raises(UnauthenticatedError):
        guard.identify(f"Bearer engine:{SECRETS[0]}", PEER)


def test_a_name_may_have_two_secrets(tmp_path: Path) -> None:
    text = f"e client * {SECRETS[0]}\ne client * {SECRETS[1]}\nn node * {SECRETS[1]}\n"
    path = write(tmp_path, text + f"n node * {SECRETS[2]}\n")
    guard = Guard(security.load_principals(path))
    old, new = (guard.identify(f"Bearer e:{secret}", PEER) for secret in SECRETS[:2])
    assert old != new and guard.still_admits(old) and guard.still_admits(new)
    assert security.load_identity(path) == old
    assert security.load_node_identity(path, "n").secret == Secret(SECRETS[1])
    guard.replace([new])
    assert guard.still_admits(new) and not guard.still_admits(old)
    with pytest.raises(UnauthenticatedError):
        guard.identify(f"Bearer e:{SECRETS[0]}", PEER)
    changed = Principal("e", Role.CLIENT, ("default",), Secret(SECRETS[1]))
    guard.replace([changed])
    assert not guard.still_admits(new), "its tenants are others"
    assert Guard(None).still_admits(new)


def test_roles_and_tenants() -> None:
    client = Principal("c", Role.CLIENT, ("default",), Secret("s"))
    node = Principal("n", Role.NODE, ("*",), Secret("s"))
    operator = Principal("o", Role.OPERATOR, ("*",), Secret("s"))
    of_one_tenant = Principal("t", Role.OPERATOR, ("default",), Secret("s"))
    security.require(client, [Role.CLIENT], "default")
    security.require(operator, [Role.OPERATOR], security.EVERY_TENANT)
    security.require(of_one_tenant, [Role.OPERATOR], "default")
    security.require(operator, [Role.CLIENT], "default")  # an operator may what a client may
    security.require(node, [Role.NODE])
    for principal, role, tenant in (
        (client, Role.CLIENT, "other"),
        (client, Role.OPERATOR, None),
        (client, Role.NODE, None),
        (of_one_tenant, Role.OPERATOR, security.EVERY_TENANT),
        (operator, Role.NODE, None),
        (node, Role.CLIENT, "default"),
    ):
        with pytest.raises(PermissionDeniedError, match=principal.name):
            security.require(principal, [role], tenant)


@pytest.mark.parametrize(
    ("name", "node_id", "may"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", "ab", False),
        ("node-*", "node-7", True),
        ("node-*", "node-", True),
        ("node-*", "other-node-7", False),
        ("*-gpu", "rack1-gpu", True),
        ("*-gpu", "rack1-gpu-2", False),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("*", "whatever", True),
    ],
)
def test_the_name_of_a_nodes_principal_bounds_its_ids(name: str, node_id: str, may: bool) -> None:
    principal = Principal(name, Role.NODE, ("*",), Secret("s"))
    assert principal.may_be_node(node_id) is may
    if may:
        security.require(principal, [Role.NODE], node_id=node_id)
    else:
        with pytest.raises(PermissionDeniedError, match="token file"):
            security.require(principal, [Role.NODE], node_id=node_id)


def test_a_node_finds_the_principal_that_it_may_be(tmp_path: Path) -> None:
    secret = "s" * 16
    path = write(
        tmp_path,
        f"n1 node * {secret}\nn* node * {secret}\nm? node * {secret}\nn2 client * {secret}\n",
    )
    assert security.load_node_identity(path, "n1").name == "n1"
    assert security.load_node_identity(path, "n2").name == "n*"
    with pytest.raises(InvalidArgumentError, match=r"0 principals.*'x'.*'n1', 'n\*'"):
        security.load_node_identity(path, "x")
    both = write(tmp_path, f"a* node * {secret}\n*b node * {secret}\n")
    with pytest.raises(InvalidArgumentError, match="2 principals"):
        security.load_node_identity(both, "ab")


@pytest.mark.parametrize(
    ("mode", "owner", "wrong"),
    [
        (0o600, 7, False),
        (0o400, 7, False),
        (0o640, 7, True),
        (0o604, 7, True),
        (0o440, 0, False),  # root's, for a group: a Kubernetes secret with fsGroup
        (0o640, 0, False),
        (0o600, 0, False),
        (0o460, 0, True),
        (0o660, 0, True),
        (0o444, 0, True),
        (0o604, 0, True),
    ],
)
def test_who_else_may_read_a_file_of_secrets(mode: int, owner: int, wrong: bool) -> None:
    assert security.too_open(mode, owner) is wrong


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns files of root")
def test_root_reads_a_file_of_root_that_a_group_reads_too(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"engine client default {'s' * 16}\n")
    file.chmod(0o640)
    assert security.load_identity(file).name == "engine"
    file.chmod(0o660)
    with pytest.raises(InvalidArgumentError, match="0660 lets others read or change it"):
        security.load_identity(file)


def test_tokens_of_any_bytes_are_wrong_ones() -> None:
    guard = Guard([Principal("engine", Role.CLIENT, ("*",), Secret(SECRETS[0]))])
    for odd in ("engine:\udcff", "\udcff:x", "engine:\ud800", ":", "engine", "\xe4:\xf6"):
        with pytest.raises(UnauthenticatedError):
            guard.identify(f"Bearer {odd}", PEER)


def test_scopes_of_a_line(tmp_path: Path) -> None:
    secret = "s" * 16
    lines = (
        f"plain client t {secret}\n"
        f"docs client t {secret} verbs=read,list keys=docs/ | verbs=write keys=docs/new/\n"
        f"both client t,u {secret} tenants=t verbs=read\n"
        f"keeper operator * {secret} verbs=admin\n"
        f"odd client t {secret} keys=%20%25%E2%82%AC\n"
    )
    found = {one.name: one for one in security.load_principals(write(tmp_path, lines))}
    assert found["plain"].scopes == () and found["plain"].may("t", LISTING)
    docs = found["docs"]
    assert docs.may("t", Need(Verb.READ, ["docs/a"])) and docs.may("t", Need(Verb.READ))
    assert not docs.may("t", Need(Verb.READ, ["docs/a", "chat/a"]))
    assert not docs.may("t", Need(Verb.WRITE, ["docs/a"]))
    assert docs.may("t", Need(Verb.WRITE, ["docs/new/a"]))
    assert docs.may("t", Need(Verb.LIST, prefix="docs/x")) and not docs.may("t", LISTING)
    assert not docs.may("u", Need(Verb.READ)) and not docs.may("t", Need(Verb.REMOVE))
    assert found["both"].may_use("t") and not found["both"].may_use("u")
    security.require(found["keeper"], [Role.OPERATOR], security.EVERY_TENANT, need=ADMINISTRATION)
    with pytest.raises(PermissionDeniedError, match="may not read here: `verbs`"):
        security.require(found["keeper"], [Role.CLIENT], "t", need=Need(Verb.READ, ["k"]))
    with pytest.raises(PermissionDeniedError, match=r"may not read key 2 .*`keys`"):
        security.require(docs, [Role.CLIENT], "t", need=Need(Verb.READ, ["docs/a", "k"]))
    assert found["odd"].scopes[0].prefix == " %\u20ac"
    assert found["docs"].native()[4] == [(9, [], "docs/"), (2, [], "docs/new/")]
    security.require(ANYBODY, [Role.CLIENT], "t", need=ADMINISTRATION)


@pytest.mark.parametrize(
    "text",
    [
        "verbs=read",
        "verbs=read,write keys=docs/",
        "tenants=a,b%2Cc keys=%7C%2B%20%25 | verbs=admin",
        "verbs=read,write,remove,list,watch,admin",
        "keys=a:b/c=d | keys=\u20ac",
    ],
)
def test_scopes_are_written_as_they_are_read(text: str) -> None:
    found = scopes.parse(text)
    assert scopes.parse(scopes.written(found)) == found
    assert scopes.parse(scopes.written(found, "+"), "+") == found
    assert scopes.written(found, "+").isascii() and " " not in scopes.written(found, "+")


def test_a_changed_scope_is_a_changed_principal() -> None:
    one = Principal("e", Role.CLIENT, ("t",), Secret("s"), scopes.parse("verbs=read"))
    guard = Guard([one])
    assert guard.still_admits(one)
    guard.replace([Principal("e", Role.CLIENT, ("t",), Secret("s"), scopes.parse("verbs=list"))])
    assert not guard.still_admits(one)


def test_who_comes_with_a_certificate_has_no_token(tmp_path: Path) -> None:
    engine = f"engine client default -\nengine client default {SECRETS[0]}\n"
    text = f"{engine}ops operator * {SECRETS[2]}\n"
    principals = security.load_principals(write(tmp_path, text))
    assert [one.native()[3] for one in principals] == ["", SECRETS[0], SECRETS[2]]
    guard = Guard(principals)
    for header in ("Bearer engine:-", "Bearer engine:", "Bearer engine"):
        with pytest.raises(UnauthenticatedError):
            guard.identify(header, PEER)
    assert [one.secret.reveal() for one in guard.named("engine")] == [SECRETS[0]]
    for role in ("node", "operator"):
        with pytest.raises(InvalidArgumentError, match="certificate"):
            security.load_principals(write(tmp_path, f"x {role} * -\n"))
