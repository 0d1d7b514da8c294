"""Where this process is, as labels say: by them a store reads from the nearest replica."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kvstore import environment
from kvstore.errors import InvalidArgumentError
from kvstore.limits import is_valid_name
from kvstore.options import refuse_unknown

_NAMES = ("numa", "rack", "rdma_domain")
_WHERE = "KVSTORE_LABELS: "
_SYS, _PROC = Path("/sys"), Path("/proc")

Locality = tuple[str, str, str]
"""`numa`, `rack` and `rdma_domain`; empty: not known."""


def given(text: str) -> dict[str, str]:
    """Read labels as KVSTORE_LABELS has them: "rack=r7,rdma_domain=pod-1".

    Raises:
        InvalidArgumentError: It is no such list, or names a label that does not count here.
    """
    labels: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not is_valid_name(value):
            raise InvalidArgumentError(f"{_WHERE}{part!r} is not NAME=VALUE")
        labels[name] = value
    refuse_unknown(labels, _NAMES, _WHERE)
    return labels


def of_process(
    text: str | None = None,
    *,
    maps_memory: bool,
    uses_rdma: bool,
    sys: Path = _SYS,
    proc: Path = _PROC,
) -> Locality:
    """Return this process's labels: those that are given, else what its host shows, as for a node.

    Args:
        text: labels as the environment gives them; None: ask it. An empty value counts as not
            known, and nothing is looked for.
        maps_memory: whether the NUMA node counts. It takes less than a millisecond to read.
        uses_rdma: whether the RDMA domain counts. Its reading is done once per process.
        sys: where sysfs is mounted.
        proc: where procfs is mounted.

    Raises:
        InvalidArgumentError: KVSTORE_LABELS is wrong.
    """
    labels = given(environment.labels() if text is None else text)
    if maps_memory and "numa" not in labels:
        from kvstore.topology import numa  # `import kvstore` stays fast

        node = numa.of_process(sys, proc)
        labels["numa"] = "" if node is None else str(node)
    if uses_rdma and "rdma_domain" not in labels:
        labels["rdma_domain"] = _rdma_domain(sys, proc)
    numa_node, rack, rdma_domain = (labels.get(name, "") for name in _NAMES)
    return numa_node, rack, rdma_domain


@cache
def _rdma_domain(sys: Path, proc: Path) -> str:
    from kvstore.topology import labels

    domain = labels.rdma_domain(sys, proc)
    return domain if is_valid_name(domain) else ""
