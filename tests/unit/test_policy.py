"""The master's decisions about nodes, as pure functions of state, event and time."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import Status
from kvstore.limits import MAX_NODES, MAX_RESTART_MS
from kvstore.master import policy
from kvstore.master.model import (
    TIER_NVME,
    Cluster,
    Drain,
    Endpoints,
    Event,
    ForgetNode,
    Heartbeat,
    Node,
    NodeState,
    Observe,
    Register,
    Segment,
    Settings,
    Stage,
    Tick,
    Unregister,
    Verified,
)
from kvstore.master.policy import (
    FinishRebuild,
    Forget,
    OpenSession,
    Persist,
    Refuse,
    SetCopyRate,
    SetLinkSilence,
    SetNode,
)

SETTINGS = Settings()
SERVING = Endpoints(tcp="tcp://h:1")
SEGMENTS = (Segment("segment", 1, 1000),)


def run(cluster: Cluster, *events: tuple[Event, int]) -> tuple[Cluster, list[policy.Decision]]:
    decisions: list[policy.Decision] = []
    for event, now_ms in events:
        cluster, more = policy.decide(SETTINGS, cluster, event, now_ms)
        decisions += more
    return cluster, decisions


def register(session: int, incarnation: int = 7, epoch: int = 0, node_id: str = "a") -> Register:
    return Register(node_id, incarnation, epoch, session, SERVING, {"host": "h"}, SEGMENTS)


def heartbeat(session: int, used: int = 0, node_id: str = "a") -> Heartbeat:
    return Heartbeat(node_id, session, 1000, used, SERVING, SEGMENTS)


def ticks(cluster: Cluster, first_ms: int, last_ms: int) -> tuple[Cluster, list[policy.Decision]]:
    """Tick every half second, and at the end."""
    times = [*range(first_ms, last_ms, 500), last_ms]
    return run(cluster, *((Tick(), now_ms) for now_ms in times))


def joined(now_ms: int = 0) -> Cluster:
    return run(Cluster(0), (register(1), now_ms), (Observe("a", True, True), now_ms))[0]


def only(decisions: list[policy.Decision], kind: type) -> list[policy.Decision]:
    return [decision for decision in decisions if isinstance(decision, kind)]


def starting(
    stage: Stage,
    incarnation: int = 8,
    segment_id: int = 2,
    epoch: int = 0,
    take_over: bool = False,
) -> Register:
    """A registration of another process under the same id."""
    first = register(9, incarnation, epoch)
    return replace(first, stage=stage, segment_id=segment_id, take_over=take_over)


def owned(segment_id: int = 1) -> Cluster:
    """A node that lives, with its link up."""
    entered = replace(register(1), segment_id=segment_id)
    return run(Cluster(0), (entered, 0), (Observe("a", True, True), 0))[0]


def test_a_newcomer_with_another_segment_does_not_displace_a_living_node() -> None:
    cluster = owned()
    for stage, epoch in ((Stage.PREPARE, 0), (Stage.ENTER, 2), (Stage.AT_ONCE, 0)):
        after, (refusal,) = run(cluster, (starting(stage, epoch=epoch), 300))
        assert after is cluster
        assert isinstance(refusal, Refuse) and refusal.status is Status.AlreadyExists
        for word in ("node 'a' is alive at tcp://h:1", "0.3 s ago", "node_id", "--take-over"):
            assert word in refusal.message
    forced = starting(Stage.ENTER, epoch=2, take_over=True)
    assert run(cluster, (forced, 300))[0].nodes["a"].session_id == 9


@pytest.mark.parametrize("why", ["same", "unlinked", "unknown"])
def test_a_process_that_is_dead_is_replaced_at_once(why: str) -> None:
    cluster = owned(0 if why == "unknown" else 1)
    if why == "unlinked":
        cluster, _ = run(cluster, (Observe("a", False, True), 0))
    newcomer = starting(Stage.ENTER, epoch=2, segment_id=1 if why == "same" else 2)
    after, decisions = run(cluster, (newcomer, 300))
    assert after.nodes["a"].session_id == 9 and after.nodes["a"].node_epoch == 2
    assert isinstance(decisions[1], OpenSession) and not decisions[1].fresh


def test_a_prepared_process_leaves_no_trace() -> None:
    asked = starting(Stage.PREPARE)
    cluster = Cluster(0)
    after, decisions = run(cluster, (asked, 0))
    assert after is cluster and not decisions
    assert policy.next_epoch(cluster, asked) == 1
    assert policy.next_epoch(cluster, replace(asked, kept_epoch=4)) == 5
    # Two that were told the same epoch: one enters, whichever segments they have.
    for segment_id in (2, 3):
        first = starting(Stage.ENTER, epoch=1)
        entered, decisions = run(cluster, (first, 10))
        opened = decisions[1]
        assert isinstance(opened, OpenSession) and opened.fresh
        assert run(entered, (replace(first, session_id=10), 20))[0].nodes["a"].session_id == 10
        late = starting(Stage.ENTER, incarnation=9, segment_id=segment_id, epoch=1)
        _, (refusal,) = run(entered, (late, 20))
        assert isinstance(refusal, Refuse) and "another process now runs" in refusal.message


def test_kept_memory_or_nvme_may_hold_what_nobody_knows_of() -> None:
    entering = starting(Stage.ENTER, epoch=6)
    nvme = Segment("nvme", TIER_NVME, 1000)
    for event in (replace(entering, kept_epoch=5), replace(entering, segments=(*SEGMENTS, nvme))):
        opened = run(Cluster(0), (event, 0))[1][1]
        assert isinstance(opened, OpenSession) and not opened.fresh


def test_a_dead_node_is_forgotten_on_request_a_living_one_is_not() -> None:
    cluster = owned()
    assert run(cluster, (ForgetNode("a"), 0)) == (cluster, [])
    (refusal,) = run(cluster, (ForgetNode("b"), 0))[1]
    assert isinstance(refusal, Refuse) and refusal.status is Status.NotFound
    cluster, _ = run(cluster, (Unregister("a", 1), 0))
    after, decisions = run(cluster, (ForgetNode("a"), 0))
    assert not after.nodes and decisions == [Forget("a")]


def test_a_drain_says_what_it_waits_for() -> None:
    second = (register(2, 8, node_id="b"), 0), (Observe("b", True, True), 0)
    cluster, _ = run(owned(), *second, (Drain("a"), 0))

    def why(cluster: Cluster, left: int = 1005, settings: Settings = SETTINGS) -> str:
        node = cluster.nodes["a"]
        return policy.drain_waits_for(settings, cluster, node, left, 40_000)

    assert why(cluster) == ""
    assert why(cluster, left=0) == "a finishes its last writes"
    both, _ = run(cluster, (Drain("b"), 0))
    assert why(both) == "nowhere to move 1,005 objects: b is draining"
    assert why(run(both, (Unregister("b", 2), 0))[0]).endswith("objects: b is dead")
    alone, _ = run(owned(), (Drain("a"), 0))
    assert why(alone) == "nowhere to move 1,005 objects: there is no other node"
    assert "repair_copies is 0" in why(cluster, settings=replace(SETTINGS, repair_copies=0))
    assert "waits for c" in why(replace(cluster, rebuilding=True, awaited=frozenset({"c"})))
    dead, _ = run(cluster, (Unregister("a", 1), 0))
    assert why(dead).startswith("a is dead (last heartbeat 40 s ago)")


def test_a_new_epoch_is_above_that_of_the_kept_memory() -> None:
    forgotten = replace(register(1), kept_epoch=41)
    cluster, _ = run(Cluster(0), (forgotten, 0))
    assert cluster.nodes["a"].node_epoch == 42
    # The record knows better when the memory is older.
    cluster, _ = run(cluster, (replace(register(2), kept_epoch=3), 10))
    assert cluster.nodes["a"].node_epoch == 43


def test_a_registration_is_on_disk_before_the_link_may_open() -> None:
    cluster, decisions = run(Cluster(0), (register(1), 5))
    assert [type(d) for d in decisions] == [Persist, OpenSession, SetNode]
    node = cluster.nodes["a"]
    assert (node.session_id, node.node_epoch, node.state) == (1, 1, NodeState.ALIVE)


def test_a_node_without_endpoints_is_joining_until_its_first_heartbeat() -> None:
    event = replace(register(1), endpoints=Endpoints())
    cluster, _ = run(Cluster(0), (event, 0))
    assert cluster.nodes["a"].state is NodeState.JOINING
    cluster, _ = run(cluster, (heartbeat(1), 10))
    assert cluster.nodes["a"].state is NodeState.ALIVE


def test_every_process_gets_a_greater_epoch_and_keeps_it() -> None:
    cluster, _ = run(Cluster(0), (register(1, incarnation=1), 0), (register(2, incarnation=2), 1))
    assert cluster.nodes["a"].node_epoch == 2
    cluster, _ = run(cluster, (register(3, incarnation=2, epoch=2), 2))
    assert (cluster.nodes["a"].node_epoch, cluster.nodes["a"].session_id) == (2, 3)


def test_a_superseded_process_is_refused() -> None:
    cluster, _ = run(Cluster(0), (register(1, incarnation=1), 0), (register(2, incarnation=2), 1))
    after, (refusal,) = run(cluster, (register(3, incarnation=1, epoch=1), 2))
    assert isinstance(refusal, Refuse) and refusal.status is Status.AlreadyExists
    assert after == cluster


def test_an_epoch_survives_a_master_that_forgot_the_node() -> None:
    cluster, _ = run(Cluster(0), (register(1, epoch=9), 0))
    assert cluster.nodes["a"].node_epoch == 9
    cluster, _ = run(cluster, (register(2, incarnation=8), 1))
    assert cluster.nodes["a"].node_epoch == 10


@pytest.mark.parametrize("event", [heartbeat(2), Unregister("a", 2), heartbeat(0)])
def test_a_wrong_session_is_refused(event: Event) -> None:
    cluster = joined()
    after, (refusal,) = run(cluster, (event, 1))
    assert isinstance(refusal, Refuse) and refusal.status is Status.NotFound
    assert after == cluster


def test_silence_for_the_ttl_is_death() -> None:
    cluster, _ = run(joined(), (heartbeat(1), 100))
    cluster, _ = ticks(cluster, 100, 5099)
    assert cluster.nodes["a"].state is NodeState.ALIVE
    cluster, decisions = run(cluster, (Tick(), 5100))
    assert cluster.nodes["a"].state is NodeState.DEAD
    (told,) = only(decisions, SetNode)
    assert isinstance(told, SetNode) and told.state is NodeState.DEAD and told.weight == 0
    # It comes back with a new session, without a new epoch: it is the same process.
    cluster, (refusal,) = run(cluster, (heartbeat(1), 5200))
    assert isinstance(refusal, Refuse)
    cluster, _ = run(cluster, (register(2, epoch=1), 5300))
    assert cluster.nodes["a"].state is NodeState.ALIVE


def test_death_reaches_placement_before_the_disk() -> None:
    _, decisions = ticks(joined(), 0, 5000)
    kinds = [type(d) for d in decisions]
    assert kinds[kinds.index(Persist) - 1] is SetNode


def test_the_masters_own_absence_is_nobodys_death() -> None:
    cluster, _ = ticks(joined(), 0, 1000)
    cluster, _ = run(cluster, (heartbeat(1), 1000), (Tick(), 61_000))
    assert cluster.nodes["a"].state is NodeState.ALIVE
    cluster, _ = ticks(cluster, 61_000, 64_900)
    assert cluster.nodes["a"].state is NodeState.ALIVE
    cluster, _ = ticks(cluster, 64_900, 65_000)
    assert cluster.nodes["a"].state is NodeState.DEAD


def test_the_number_of_nodes_is_bounded() -> None:
    cluster = policy.start([known(f"n{i}", left=True) for i in range(MAX_NODES)], 0)
    after, (refusal,) = run(cluster, (register(1, node_id="one more"), 1))
    assert isinstance(refusal, Refuse) and refusal.status is Status.Overloaded
    assert after == cluster
    run(cluster, (register(1, node_id="n0"), 1))


def test_a_goodbye_is_death_at_once_and_nobody_waits_for_it() -> None:
    cluster, _ = run(joined(), (Unregister("a", 1), 10))
    node = cluster.nodes["a"]
    assert node.state is NodeState.DEAD and node.left
    assert not policy.start([node], 20).rebuilding


def test_an_announced_restart_is_awaited_until_its_deadline() -> None:
    cluster, decisions = run(joined(), (Unregister("a", 1, returns_in_ms=3000), 10))
    assert cluster.nodes["a"].state is NodeState.RESTARTING
    (told,) = only(decisions, SetNode)
    assert isinstance(told, SetNode) and told.state is NodeState.RESTARTING and told.weight == 0
    assert not policy.start([cluster.nodes["a"]], 20).rebuilding  # no put waits for it
    forgotten, decisions = run(cluster, (ForgetNode("a"), 20))
    assert forgotten.nodes == {} and only(decisions, Forget) == [Forget("a")]
    cluster, decisions = run(cluster, (Tick(), 3009))
    assert cluster.nodes["a"].state is NodeState.RESTARTING and not only(decisions, SetNode)
    back, _ = run(cluster, (register(2, incarnation=8), 3009))
    assert back.nodes["a"].state is NodeState.ALIVE
    cluster, decisions = run(cluster, (Tick(), 3010))
    assert cluster.nodes["a"].state is NodeState.DEAD
    (told,) = only(decisions, SetNode)
    assert isinstance(told, SetNode) and told.state is NodeState.DEAD
    back, _ = run(cluster, (register(2, incarnation=8), 9000))
    assert back.nodes["a"].state is NodeState.ALIVE


def test_how_long_a_restart_is_awaited_is_the_masters_to_bound() -> None:
    cluster, _ = run(joined(), (Unregister("a", 1, returns_in_ms=1 << 31), 10))
    assert cluster.nodes["a"].returns_by_ms == 10 + MAX_RESTART_MS
    drained, _ = run(joined(), (Drain("a"), 5), (Unregister("a", 1, returns_in_ms=3000), 10))
    assert drained.nodes["a"].state is NodeState.DEAD


def test_a_node_that_is_away_is_forgotten_after_the_retention() -> None:
    cluster, _ = ticks(joined(), 0, 5000)
    last = SETTINGS.retention_ms
    cluster, decisions = run(cluster, (Tick(), last - 1))
    assert "a" in cluster.nodes
    cluster, decisions = run(cluster, (Tick(), last))
    assert cluster.nodes == {} and only(decisions, Forget) == [Forget("a")]


def test_an_ephemeral_node_is_forgotten_with_its_ttl() -> None:
    node = replace(joined().nodes["a"], labels={"ephemeral": "true"})
    cluster = Cluster(started_ms=0, nodes=MappingProxyType({"a": node}))
    gone, _ = run(cluster, (Unregister("a", 1), 10))
    gone, decisions = run(gone, (Tick(), SETTINGS.node_ttl_ms - 1))
    assert "a" in gone.nodes
    gone, decisions = run(gone, (Tick(), SETTINGS.node_ttl_ms))
    assert gone.nodes == {} and only(decisions, Forget) == [Forget("a")]
    # A master that starts again waits for it like for any other: it may be alive.
    cluster = policy.start([replace(node, session_id=0)], 3600_000)
    assert cluster.rebuilding
    cluster, decisions = run(cluster, (Tick(), 3600_001))
    assert "a" in cluster.nodes and only(decisions, Forget) == []


def test_the_record_of_a_living_node_does_not_grow_old() -> None:
    cluster = joined()
    written = []
    for now_ms in range(0, 3 * 3600 * 1000, 1000):
        cluster, decisions = run(cluster, (heartbeat(1), now_ms))
        written += [now_ms for _ in only(decisions, Persist)]
    assert written == [3600 * 1000, 2 * 3600 * 1000]


def test_drain_takes_the_node_out_of_placement_and_is_remembered() -> None:
    cluster, decisions = run(joined(), (heartbeat(1), 0), (Drain("a"), 60_000))
    assert [type(d) for d in decisions[-2:]] == [Persist, SetNode]
    assert cluster.nodes["a"].state is NodeState.DRAINING
    assert policy.weight(SETTINGS, cluster.nodes["a"], 60_000) == 0
    again, nothing = run(cluster, (Drain("a"), 60_001))
    assert again == cluster and nothing == []
    # A restart of master and node does not end the drain.
    cluster = policy.start([cluster.nodes["a"]], 0)
    cluster, _ = run(cluster, (register(2, incarnation=8), 1))
    assert cluster.nodes["a"].state is NodeState.DRAINING
    cluster, _ = run(cluster, (Drain("a", cancel=True), 2))
    assert cluster.nodes["a"].state is NodeState.ALIVE


def test_a_drain_that_begins_again_asks_for_a_new_acknowledgement() -> None:
    event = replace(heartbeat(1), refuses_writes=True)
    cluster, _ = run(joined(), (Drain("a"), 1), (event, 2))
    assert cluster.nodes["a"].refuses_writes
    cluster, _ = run(cluster, (Drain("a", cancel=True), 3), (Drain("a"), 4))
    assert not cluster.nodes["a"].refuses_writes


def test_nobody_drains_an_unknown_node() -> None:
    _, (refusal,) = run(Cluster(0), (Drain("a"), 1))
    assert isinstance(refusal, Refuse) and refusal.status is Status.NotFound


def test_weight_is_free_ratio_times_slow_start() -> None:
    node = joined().nodes["a"]
    at = SETTINGS.slow_start_ms
    assert policy.weight(SETTINGS, node, 0) == pytest.approx(policy.SLOW_START_SHARE)
    assert policy.weight(SETTINGS, node, at // 2) == pytest.approx(0.55)
    assert policy.weight(SETTINGS, node, at) == 1
    assert policy.weight(SETTINGS, replace(node, used_bytes=750), at) == pytest.approx(0.25)
    assert policy.weight(SETTINGS, replace(node, used_bytes=5000), at) == policy.MIN_FREE_RATIO
    for useless in (
        replace(node, linked=False),
        replace(node, capacity_bytes=0),
        replace(node, session_id=0),
        replace(node, published=Endpoints()),
        replace(node, draining=True),
    ):
        assert policy.weight(SETTINGS, useless, at) == 0


CHECKED = replace(SETTINGS, verify_endpoints=True)


def step(cluster: Cluster, event: Event) -> tuple[Cluster, list[policy.Decision]]:
    return policy.decide(CHECKED, cluster, event, 0)


def test_an_endpoint_is_published_once_it_is_verified() -> None:
    cluster, decisions = step(policy.start([], 0), register(1))
    node = cluster.nodes["a"]
    assert (node.state, node.published) == (NodeState.JOINING, Endpoints())
    assert [d.node.published for d in decisions if isinstance(d, OpenSession)] == [Endpoints()]
    cluster, _ = step(cluster, heartbeat(1))
    cluster, decisions = step(cluster, Verified("a", 1, SERVING.tcp, "nobody answers"))
    node = cluster.nodes["a"]
    assert (node.state, node.problem, decisions) == (NodeState.JOINING, "nobody answers", [])
    cluster, (decision,) = step(cluster, Verified("a", 1, SERVING.tcp, ""))
    node = cluster.nodes["a"]
    assert (node.state, node.published, node.problem) == (NodeState.ALIVE, SERVING, "")
    assert decision == SetNode(node, NodeState.ALIVE, policy.weight(CHECKED, node, 0))


def test_an_announced_change_is_verified_before_it_replaces_what_is_published() -> None:
    cluster, _ = step(policy.start([], 0), register(1))
    cluster, _ = step(cluster, Verified("a", 1, SERVING.tcp, ""))
    other = Endpoints(tcp="tcp://elsewhere:1", unix="unix:/x")
    cluster, _ = step(cluster, replace(heartbeat(1), endpoints=other))
    assert (cluster.nodes["a"].published, cluster.nodes["a"].endpoints) == (SERVING, other)
    for ignored in (
        Verified("a", 1, SERVING.tcp, "of the one before"),
        Verified("a", 2, other.tcp, ""),
        Verified("b", 1, other.tcp, ""),
    ):
        assert step(cluster, ignored) == (cluster, [])
    cluster, _ = step(cluster, Verified("a", 1, other.tcp, "it is node 'b'"))
    assert cluster.nodes["a"].published == SERVING
    assert cluster.nodes["a"].state is NodeState.ALIVE
    # The socket of the same host is checked by who connects to it.
    moved = replace(SERVING, unix="unix:/y")
    cluster, _ = step(cluster, replace(heartbeat(1), endpoints=moved))
    assert (cluster.nodes["a"].published, cluster.nodes["a"].problem) == (moved, "")
    cluster, _ = step(cluster, replace(heartbeat(1), endpoints=Endpoints()))
    assert cluster.nodes["a"].state is NodeState.JOINING


def test_another_process_is_verified_anew_and_the_same_one_is_not() -> None:
    cluster, _ = step(policy.start([], 0), register(1))
    cluster, _ = step(cluster, Verified("a", 1, SERVING.tcp, ""))
    again, _ = step(cluster, register(2, epoch=cluster.nodes["a"].node_epoch))
    assert again.nodes["a"].published == SERVING
    another, _ = step(cluster, register(2, incarnation=8))
    assert another.nodes["a"].published == Endpoints()


def test_without_tcp_there_is_nothing_to_verify() -> None:
    unix = Endpoints(unix="unix:/x")
    cluster, _ = step(policy.start([], 0), replace(register(1), endpoints=unix))
    assert cluster.nodes["a"].published == unix


def known(node_id: str, left: bool = False) -> Node:
    return Node(node_id, node_epoch=1, incarnation=7, last_seen_ms=-1000, left=left)


def test_a_fresh_cluster_needs_no_rebuild() -> None:
    assert not policy.start([], 0).rebuilding


def test_a_rebuild_ends_when_everybody_has_announced() -> None:
    cluster = policy.start([known("a"), known("b")], 0)
    assert cluster.rebuilding and cluster.awaited == {"a", "b"}
    cluster, decisions = run(
        cluster,
        (register(1, epoch=1), 100),
        (register(2, epoch=1, node_id="b"), 100),
        (Observe("a", True, True), 200),
        (Observe("b", True, False), 200),
        (Tick(), 300),
    )
    assert cluster.rebuilding and cluster.awaited == {"b"}
    assert only(decisions, SetCopyRate) == [SetCopyRate(0)]
    cluster, decisions = run(cluster, (Observe("b", True, True), 400), (Tick(), 500))
    assert not cluster.rebuilding
    assert only(decisions, FinishRebuild) == [FinishRebuild(())]
    assert only(decisions, SetCopyRate) == [SetCopyRate(SETTINGS.repair_copies)]


def test_a_rebuild_ends_with_the_ttl_of_those_who_stay_away() -> None:
    cluster = policy.start([known("a"), known("b")], 0)
    cluster, _ = run(cluster, (register(1, epoch=1), 100), (Observe("a", True, True), 200))
    cluster, _ = ticks(cluster, 200, 4999)
    assert cluster.rebuilding
    cluster, decisions = run(cluster, (heartbeat(1), 4999), (Tick(), 5000))
    assert not cluster.rebuilding
    assert only(decisions, FinishRebuild) == [FinishRebuild(("b",))]


def test_a_node_without_a_link_does_not_hold_up_the_rebuild() -> None:
    cluster = policy.start([known("a")], 0)
    cluster, _ = run(cluster, (register(1, epoch=1), 4000))
    for now_ms in range(4000, 9000, 500):
        cluster, _ = run(cluster, (heartbeat(1), now_ms), (Tick(), now_ms))
        assert cluster.rebuilding
    cluster, _ = run(cluster, (heartbeat(1), 9000), (Tick(), 9000))
    assert not cluster.rebuilding


EVENTS = st.one_of(
    st.builds(
        lambda n, i, e: ("register", n, i, e),
        st.sampled_from("ab"),
        st.integers(1, 3),
        st.booleans(),
    ),
    st.builds(
        lambda n, i, s, stage, force: ("start", n, i, s, stage, force),
        st.sampled_from("ab"),
        st.integers(1, 3),
        st.integers(1, 2),
        st.sampled_from((Stage.PREPARE, Stage.ENTER)),
        st.booleans(),
    ),
    st.builds(lambda n: ("heartbeat", n), st.sampled_from("ab")),
    st.builds(lambda n, ms: ("leave", n, ms), st.sampled_from("ab"), st.sampled_from((0, 4000))),
    st.builds(lambda n: ("forget", n), st.sampled_from("ab")),
    st.builds(lambda n, c: ("drain", n, c), st.sampled_from("ab"), st.booleans()),
    st.builds(
        lambda n, x, y: ("seen", n, x, y), st.sampled_from("ab"), st.booleans(), st.booleans()
    ),
    st.just(("tick",)),
)


@given(st.lists(st.tuples(EVENTS, st.integers(0, 6000)), max_size=60))
def test_whatever_happens(script: list[tuple[tuple[object, ...], int]]) -> None:
    """Epochs only grow, sessions are unique, silence is death, opened sessions are on disk."""
    cluster, now_ms = policy.start([known("b")], 0), 0
    highest: dict[str, int] = {}
    disk: dict[str, Node] = {}
    for session, (step, pause_ms) in enumerate(script, 1):
        now_ms += pause_ms
        cluster_before = cluster
        event = _event(step, cluster, session)
        cluster, decisions = policy.decide(SETTINGS, cluster, event, now_ms)
        for decision in decisions:
            match decision:
                case Refuse():
                    assert cluster == cluster_before and len(decisions) == 1
                case Persist(node):
                    disk[node.node_id] = node
                case OpenSession(node):
                    assert disk[node.node_id] == node
                    assert node.node_epoch >= highest.get(node.node_id, 0)
                    highest[node.node_id] = node.node_epoch
                case policy.Forget(node_id):
                    highest.pop(node_id, None)  # begins anew; one with memory says its epoch
                case SetNode(node, state, weight):
                    assert 0 <= weight <= 1
                    assert weight == 0 or state is NodeState.ALIVE
        if isinstance(event, Register):
            check_registration(cluster_before, cluster, event)
        living = [n.session_id for n in cluster.nodes.values() if n.session_id]
        assert len(living) == len(set(living))
        if isinstance(event, Tick):
            assert cluster.ticked_ms == now_ms
            for node in cluster.nodes.values():
                assert node.last_seen_ms <= now_ms
                if now_ms - node.last_seen_ms >= SETTINGS.node_ttl_ms:
                    assert node.state is NodeState.DEAD or now_ms < node.returns_by_ms


def check_registration(before: Cluster, after: Cluster, event: Register) -> None:
    """Who prepares changes nothing; who lives is not replaced by another segment."""
    if event.stage is Stage.PREPARE:
        assert after is before
    was, now = before.nodes.get(event.node_id), after.nodes.get(event.node_id)
    if was is None or now is None or now.incarnation == was.incarnation:
        return
    assert now.node_epoch > was.node_epoch
    if event.stage is Stage.ENTER and was.linked and not event.take_over:
        assert was.segment_id in (0, event.segment_id)


def _event(step: tuple[object, ...], cluster: Cluster, session: int) -> Event:
    kind, *rest = step
    node = cluster.nodes.get(str(rest[0])) if rest else None
    current = node.session_id if node else 0
    match kind, rest:
        case "register", [str(node_id), int(incarnation), again]:
            epoch = node.node_epoch if node and again else 0
            return register(session, incarnation, epoch, node_id)
        case "start", [str(node_id), int(incarnation), int(segment), Stage() as stage, bool(force)]:
            asked = starting(Stage.PREPARE, incarnation, segment, take_over=force)
            asked = replace(asked, node_id=node_id, session_id=session)
            if stage is Stage.PREPARE:
                return asked
            return replace(asked, stage=stage, node_epoch=policy.next_epoch(cluster, asked))
        case "forget", [str(node_id)]:
            return ForgetNode(node_id)
        case "heartbeat", [str(node_id)]:
            return heartbeat(current, node_id=node_id)
        case "leave", [str(node_id), int(returns_in_ms)]:
            return Unregister(node_id, current, returns_in_ms)
        case "drain", [str(node_id), bool(cancel)]:
            return Drain(node_id, cancel)
        case "seen", [str(node_id), bool(linked), bool(synced)]:
            return Observe(node_id, linked, synced)
    return Tick()


def test_a_shorter_ttl_waits_for_nodes_that_follow_the_longer_interval() -> None:
    before = Settings(heartbeat_ms=5000, node_ttl_ms=20_000)
    after = Settings(heartbeat_ms=100, node_ttl_ms=300)
    cluster, _ = policy.decide(before, policy.start([], 0), register(1), 0)
    for now_ms in (50, 4900, 9900):  # the tick is late on none of them
        cluster = replace(cluster, ticked_ms=now_ms - 50)
        cluster, _ = policy.decide(after, cluster, Tick(), now_ms)
        assert cluster.nodes["a"].state is NodeState.ALIVE
    cluster, _ = policy.decide(after, cluster, heartbeat(1), 9950)
    assert cluster.nodes["a"].heartbeat_ms == 100
    for now_ms, state in ((10_200, NodeState.ALIVE), (10_300, NodeState.DEAD)):
        cluster = replace(cluster, ticked_ms=now_ms - 50)
        cluster, _ = policy.decide(after, cluster, Tick(), now_ms)
        assert cluster.nodes["a"].state is state


def test_in_a_large_cluster_each_node_reports_less_often() -> None:
    def cluster_of(count: int) -> Cluster:
        cluster = Cluster(started_ms=0)
        for number in range(count):
            node_id = f"n{number}"
            cluster, _ = run(cluster, (register(1, node_id=node_id), 0))
        return cluster

    def told(cluster: Cluster) -> tuple[int, int]:
        cluster, _ = run(cluster, (heartbeat(1, node_id="n0"), 1))
        _, decisions = run(cluster, (Tick(), 2))
        (silence,) = only(decisions, SetLinkSilence)
        assert isinstance(silence, SetLinkSilence)
        return cluster.nodes["n0"].heartbeat_ms, silence.silence_ms

    few = SETTINGS.heartbeat_ms * policy.HEARTBEATS_PER_S // 1000
    assert told(cluster_of(few)) == (SETTINGS.heartbeat_ms, 0)
    many = cluster_of(few * 4)
    assert told(many) == (SETTINGS.heartbeat_ms * 4, policy.LINK_SILENCE_MS)
    assert told(replace(many, rebuilding=True, awaited=frozenset({"n1"})))[1] == 0
    assert policy.heartbeat_ms(SETTINGS, cluster_of(MAX_NODES)) == policy.MAX_HEARTBEAT_MS
    # One that has been told the longer interval is not dead before it could have reported twice.
    many, _ = run(many, (Tick(), 900), (heartbeat(1, node_id="n0"), 1000))
    silent_ms = 2 * many.nodes["n0"].heartbeat_ms
    for now_ms in range(1500, 1000 + silent_ms, 500):
        many, _ = run(many, (Tick(), now_ms))
    assert many.nodes["n0"].session_id
    many, _ = run(many, (Tick(), 1000 + silent_ms))
    assert not many.nodes["n0"].session_id


def test_weights_are_told_while_they_change_by_themselves() -> None:
    cluster, _ = run(joined(), (Tick(), 0))
    at = SETTINGS.slow_start_ms
    beats = [(heartbeat(1), now_ms) for now_ms in range(1000, at + 3000, 1000)]
    early, decisions = run(cluster, *beats[:5], (Tick(), 5500))
    assert only(decisions[-3:], SetNode)
    cluster, _ = run(early, *beats[5:])
    _, decisions = run(cluster, (Tick(), at + 3000))
    assert not only(decisions, SetNode)


def test_a_heartbeat_may_change_the_labels() -> None:
    cluster, _ = run(policy.start([], 0), (register(1), 0), (heartbeat(1), 10))
    assert cluster.nodes["a"].labels == {"host": "h"}
    moved = replace(heartbeat(1), labels={"host": "other", "rack": "r"})
    cluster, decisions = run(cluster, (moved, 20))
    assert cluster.nodes["a"].labels == {"host": "other", "rack": "r"}
    assert [d.node.labels for d in decisions if isinstance(d, SetNode)] == [moved.labels]
