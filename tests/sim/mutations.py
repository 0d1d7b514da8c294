"""Proof that the simulation finds what it is there for: takes out one guard at a time.

    python tests/sim/mutations.py build/mutations/sim/sim [--seeds 2000] [--jobs 2] [guard ...]

Runs seeds until a checker says so, and prints a table; fails when no seed does. The build is made
with -DKVSTORE_MUTATIONS=ON (`make test-mutations` does so); the names are those of KV_GUARD in
native/src; those that only clients with mapped memory or several processes need are in
tests/fault/mutations.py. Where another guard hides the loss of one, both are taken out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A guard to take out, and how to see that it is gone."""

    guard: str
    protects: str
    masked_by: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    unseen: str = ""  # why the simulation cannot tell


MUTATIONS = (
    Mutation("hold", "a block on its way to a reader is not reused"),
    Mutation("hold", "no other bytes are handed out even then", ("checksum",)),
    Mutation("session", "a link is the node's current session's"),
    Mutation("node-epoch", "what an earlier life acknowledged does not count for this one"),
    Mutation("claim", "only a granted claim publishes"),
    Mutation("flushed-epoch", "nothing of an ended epoch is recorded"),
    Mutation("tombstone", "nothing at or below a tombstone is announced"),
    Mutation("catch-up", "missed removes are applied before the announce", ("tombstone",)),
    Mutation("holders", "Ok waits for every holder"),
    Mutation("journal", "an answer waits for the disk"),
    Mutation("earlier-endings", "a remove waits for who is behind on an earlier one or flush"),
    Mutation("unheard-copies", "a remove waits for copies that landed unheard"),
    Mutation("upsert-floor", "an upsert overtakes what nodes hold that nobody has heard since"),
    Mutation("announce-fence", "who asks waits for an announcement that is on its way"),
    Mutation(
        "fence-flush",
        "what was answered is announced before the answer to a Ping",
        unseen="not found in seeds 1..600: the announcement follows the answer at once",
    ),
    Mutation(
        "take-back",
        "what was not acknowledged when the link went is unpublished",
        unseen="not found in seeds 1..400: the full announce makes it known soon after",
    ),
    Mutation(
        "limbo",
        "the claims of a lost link wait for their node",
        unseen="not found in seeds 1..400: nearly always nobody else writes the key meanwhile",
    ),
)


def run(program: str, mutation: Mutation, seeds: int, jobs: int) -> tuple[int | None, str, float]:
    """The first failing seed, what the checker said there, and the seconds it took."""
    guards = ",".join((mutation.guard, *mutation.masked_by))
    command = [program, "--seeds", f"1..{seeds}", "--jobs", str(jobs), "--max-failures", "1"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, *mutation.options],
        env={**os.environ, "KVSTORE_REMOVED_GUARDS": guards},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
    )
    seconds = time.monotonic() - begin
    found = re.search(r"^seed (\d+): FAIL (.*)$", done.stdout, re.MULTILINE)
    if found is None:
        return None, "", seconds
    return int(found[1]), found[2], seconds


def main() -> int:
    """Run the chosen mutations, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("guards", nargs="*")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print("| guard | protects | also taken out | seed | s | the checker said |")
    print("|---|---|---|---|---|---|")
    missed = 0
    for mutation in MUTATIONS:
        if options.guards and mutation.guard not in options.guards:
            continue
        if mutation.unseen:
            cells = ("-", "-", mutation.unseen)
        else:
            seed, said, seconds = run(options.program, mutation, options.seeds, options.jobs)
            missed += seed is None
            kept = ", kept memory" if mutation.options else ""
            cells = (
                f"none of {options.seeds}{kept}" if seed is None else f"{seed}{kept}",
                f"{seconds:.0f}",
                said,
            )
        masks = ", ".join(mutation.masked_by) or "-"
        print(
            f"| {mutation.guard} | {mutation.protects} | {masks} | {' | '.join(cells)} |",
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
