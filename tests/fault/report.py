"""The table of what was made to fail, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One case; `outage_s` is None where no load was running."""

    case: str
    cycles: int
    wrong: int
    leaks: int
    outage_s: float | None


rows: list[Row] = []

ELSEWHERE = {
    "another node's or format's memory": "cluster/test_warm_restart.py",
    "a second owner of the same memory": "cluster/test_warm_restart.py",
    "a view held by a sleeping client through restarts": "cluster/test_warm_restart.py",
    "one flipped byte in each region, a cut segment": "native/tests/store/store_damage_test.cpp",
    "many lives": "native/tests/store/store_attach_test.cpp",
    "a sleeping writer without a restart": "cluster/test_faults.py",
    "NVMe: torn tails, failing calls, losses of power": (
        "native/tests/nvme/{fault,power_loss}_test.cpp"
    ),
    "NVMe: the folder of another node": "cluster/test_nvme_tier.py",
}
"""Cases that other tests make already."""


def add(
    case: str, cycles: int, wrong: list[str], leaks: list[str], outage_s: float | None = None
) -> None:
    """Note a row, then fail on what is wrong with it."""
    rows.append(Row(case, cycles, len(wrong), len(leaks), outage_s))
    assert not wrong, f"{case}: {len(wrong)} wrong reads\n" + "\n".join(wrong[:10])
    assert not leaks, f"{case}: leaks\n" + "\n".join(leaks)


def table() -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| case | cycles | wrong bytes | leaks | longest outage (s) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        outage = "-" if row.outage_s is None else f"{row.outage_s:.2f}"
        lines.append(f"| {row.case} | {row.cycles} | {row.wrong} | {row.leaks} | {outage} |")
    lines += ["", "Made elsewhere:", *(f"- {case}: {where}" for case, where in ELSEWHERE.items())]
    return "\n".join(lines)
