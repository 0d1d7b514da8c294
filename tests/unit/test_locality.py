"""Where a client is: what KVSTORE_LABELS says, else what its host shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore import InvalidArgumentError
from kvstore.client import locality
from tests.support.fake_sysfs import FakeHost, write


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    """Two NUMA nodes, of which the process may use the memory of the second; one fabric."""
    host = FakeHost(tmp_path, numa_nodes=2)
    write(host.proc / "self" / "status", "Name:\tx\nMems_allowed_list:\t1")
    host.nic("mlx5_0", layer="InfiniBand", gids=[("fec0:0:0:7::a", "")])
    return host


@pytest.mark.parametrize(
    ("text", "maps_memory", "uses_rdma", "want"),
    [
        ("", True, True, ("1", "", "ib:fec0000000000007")),
        ("", True, False, ("1", "", "")),
        ("", False, False, ("", "", "")),
        ("rack=r7", False, True, ("", "r7", "ib:fec0000000000007")),
        (" rack=r 7 , numa=0,", True, False, ("0", "r 7", "")),
        ("rdma_domain=", True, True, ("1", "", "")),
        ("numa=,rdma_domain=a+b", True, True, ("", "", "a+b")),
        ("rdma_domain=pod=1", False, False, ("", "", "pod=1")),
    ],
)
def test_what_is_given_comes_before_what_the_host_shows(
    host: FakeHost, text: str, maps_memory: bool, uses_rdma: bool, want: tuple[str, str, str]
) -> None:
    found = locality.of_process(
        text, maps_memory=maps_memory, uses_rdma=uses_rdma, sys=host.sys, proc=host.proc
    )
    assert found == want


def test_a_host_that_shows_nothing_is_unknown(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    found = locality.of_process("", maps_memory=True, uses_rdma=True, sys=nowhere, proc=nowhere)
    assert found == ("", "", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rack", "'rack' is not NAME=VALUE"),
        ("rack=a\tb", "is not NAME=VALUE"),
        (f"rack={'x' * 300}", "is not NAME=VALUE"),
        ("rak=r7", "did you mean 'rack'"),
        ("host=h", "unknown key 'host'"),
    ],
)
def test_a_wrong_list_is_refused_by_its_name(text: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        locality.given(text)
    assert str(caught.value).startswith("KVSTORE_LABELS: ")
