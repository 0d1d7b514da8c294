"""How a node's memory is divided among tenants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import InvalidArgumentError
from kvstore.config import NodeConfig, load
from kvstore.node.domains import Domain, plan, remarks
from kvstore.security import Principal, Role, Secret

MIB = 1 << 20


def principal(role: Role, *tenants: str) -> Principal:
    return Principal(f"p-{'-'.join(tenants)}", role, tenants, Secret("s" * 16))


def client(*tenants: str) -> Principal:
    return principal(Role.CLIENT, *tenants)


NODE = principal(Role.NODE, "*")
OPERATOR = principal(Role.OPERATOR, "*")


def sizes(domains: tuple[Domain, ...]) -> dict[str, int]:
    return {domain.name: domain.segment_bytes // MIB for domain in domains}


def config(**keys: object) -> NodeConfig:
    return load(NodeConfig, None, {"segment_size": 64 * MIB, **keys})


def test_without_tokens_everybody_shares() -> None:
    (only,) = plan(config(), ())
    assert only == Domain("shared", frozenset({"default"}), True, 64 * MIB)
    assert only.native().name == "" and not only.native().is_private


def test_tenants_that_all_may_map_share_everything() -> None:
    (only,) = plan(config(shm_read=["r"]), [client("default"), client("r"), NODE, OPERATOR])
    assert only == Domain("shared", frozenset({"default", "r"}), False, 64 * MIB)


def test_a_tenant_in_no_list_gets_private_memory() -> None:
    domains = plan(config(), [client("default"), client("other"), NODE])
    assert sizes(domains) == {"shared": 32, "private": 32}
    assert domains[1] == Domain("private", frozenset(), True, 32 * MIB)
    assert domains[1].native().is_private and domains[1].file_suffix == "private"
    assert not domains[0].others


def test_a_shared_domain_that_nobody_uses_is_small() -> None:
    assert sizes(plan(config(), [client("other")])) == {"shared": 1, "private": 64}
    # Who may use every tenant may use those, too.
    assert sizes(plan(config(), [client("other"), client("*")])) == {"shared": 32, "private": 32}
    assert sizes(plan(config(), [client("*"), NODE])) == {"shared": 64}


def test_domains_and_shares() -> None:
    divided = config(
        shm_write=["a", "b"],
        domains={"own": ["b"], "third": ["c"]},
        domain_shares={"private": 0.25, "own": 0.25},
    )
    domains = plan(divided, [client("a", "b"), client("c")])
    assert sizes(domains) == {"shared": 16, "own": 16, "third": 16, "private": 16}
    assert [sorted(domain.tenants) for domain in domains] == [["a"], ["b"], ["c"], []]
    assert [domain.others for domain in domains] == [False, False, False, True]
    # Without tokens, too: a share for it asks for a private domain.
    assert plan(config(domain_shares={"private": 0.5}), ())[1].others


@given(
    st.lists(st.sampled_from("abcd*"), min_size=1, unique=True),
    st.sets(st.sampled_from("abcd")),
    st.dictionaries(st.sampled_from(("shared", "private", "own")), st.floats(0.1, 0.3)),
)
def test_every_tenant_has_one_home_and_the_parts_fit(
    named: list[str], mapping: set[str], shares: dict[str, float]
) -> None:
    chosen = config(shm_write=sorted(mapping), domains={"own": ["d"]}, domain_shares=shares)
    domains = plan(chosen, [client(*named)])
    assert domains[0].name == "shared", "its files lock the folder"
    assert sum(domain.segment_bytes for domain in domains) <= 65 * MIB
    assert all(domain.segment_bytes >= MIB for domain in domains)
    others = [domain for domain in domains if domain.others]
    assert len(others) <= 1
    for tenant in set(named) - {"*"}:
        homes = [domain for domain in domains if tenant in domain.tenants]
        assert len(homes) == 1 or (not homes and others and others[0].name == "private")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"shm_write": ["a"], "shm_read": ["a"]}, "tenant a is named twice"),
        ({"domains": {"x": ["a"], "y": ["a"]}}, "tenant a is named twice"),
        ({"domains": {"private": ["a"]}}, "'private'"),
        ({"domains": {"../x": ["a"]}}, "lower-case letters"),
        ({"domains": {f"d{i}": [] for i in range(9)}}, "at most 8"),
        ({"domains": {"x": ["a\n"]}}, "invalid name"),
        ({"domain_shares": {"x": 0.5}}, "no domain x"),
        ({"domain_shares": {"private": 0.6, "shared": 0.6}}, "add up to 1"),
        ({"domain_shares": {"private": 0}}, "above 0"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        config(**keys)


def test_what_a_reload_cannot_give_is_said() -> None:
    before = config()
    domains = plan(before, [client("default"), client("other")])
    assert not list(remarks(domains, before, [client("default"), client("new")]))
    listed = config(shm_write=["default", "other"])
    assert list(remarks(domains, listed, [client("other")])) == [
        "tenant other can map memory only after a restart of the node"
    ]
    alone = plan(before, [client("default")])
    assert list(remarks(alone, before, [client("default"), client("new")])) == [
        "tenant new has memory here only after a restart of the node"
    ]
    assert not list(remarks(plan(before, ()), listed, ()))
