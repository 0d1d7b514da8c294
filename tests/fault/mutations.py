"""Proof that the fault suite finds what it is there for: takes out one guard at a time.

    python -m tests.fault.mutations BUILD_FOLDER

BUILD_FOLDER holds the extension of a build with -DKVSTORE_MUTATIONS=ON (`make test-mutations` makes
it). The package, with that extension, and the tests are copied aside; each guard is taken out
there, and a test of the suite that passes with all of them has to fail. Prints a table; exits with
1 when a loss is not seen.
The names are those of KV_GUARD in native/src; tests/sim/mutations.py has what a simulation sees.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.package import ROOT, copy_package

_TRIES = 5


@dataclass(frozen=True)
class Mutation:
    """A guard to take out, and the test that is to fail without it."""

    guard: str
    protects: str
    test: str
    masked_by: tuple[str, ...] = ()


MUTATIONS = (
    Mutation(
        "generation",
        "a reader of mapped memory looks again",
        "tests/fault/test_churn.py::test_readers_meet_eviction",
        ("checksum",),
    ),
    Mutation(
        "quarantine",
        "an expired write's block is not given to the next",
        "tests/cluster/test_faults.py::test_a_sleeping_writers_block_is_never_handed_out",
        ("checksum",),
    ),
    Mutation(
        "attach-reservations",
        "a block that a living client may write is not given to the next",
        "tests/fault/test_client_kill.py::test_clients_sleep_through_restarts",
        ("checksum",),
    ),
    Mutation(
        "attach-hazards",
        "a block that a living client reads is not given to a writer",
        "tests/cluster/test_warm_restart.py::test_views_keep_their_bytes",
    ),
    Mutation(
        "gpu-event",
        "a copy has been made when its call returns",
        "tests/gpu/test_order.py::test_a_get_that_waits_does_not_return_early",
    ),
    Mutation(
        "gpu-event",
        "an object is published when its bytes have arrived",
        "tests/gpu/test_order.py::test_a_put_waits_for_its_copies",
    ),
    Mutation(
        "gpu-hold",
        "a block that a GPU copies is not given to the next",
        "tests/gpu/test_order.py::test_a_block_is_held_until_its_copy_is_made",
    ),
    Mutation(
        "gpu-generation",
        "an object that changed while a GPU copied it is a miss",
        "tests/gpu/test_order.py::test_a_changed_generation_is_a_miss",
    ),
    Mutation(
        "gpu-generation",
        "a block that is not held any more gives no wrong bytes",
        "tests/gpu/test_order.py::test_a_block_is_held_until_its_copy_is_made",
        ("gpu-hold",),
    ),
    Mutation(
        "gpu-checksum",
        "a GPU gets no bytes of a wrong checksum",
        "tests/gpu/test_order.py::test_a_wrong_checksum_is_a_miss[no kernels]",
    ),
    Mutation(
        "gpu-sum",
        "what a GPU has summed decides whether its bytes count",
        "tests/gpu/test_kernels.py::test_bytes_that_a_copy_damaged_are_a_miss",
    ),
    Mutation(
        "gpu-sum",
        "pages are proven by the kernel that moves them",
        "tests/gpu/test_kernels.py::test_pages_by_one_launch",
    ),
    Mutation(
        "gpu-stream",
        "a network writes into a GPU's memory when its stream is done with it",
        "tests/gpu/test_direct.py::test_in_a_process_of_its_own",
    ),
    Mutation(
        "owner-lock",
        "one process owns a folder",
        "tests/cluster/test_warm_restart.py::test_a_second_owner_is_refused_and_the_first_one_stays",
    ),
)


def copy_aside(build: Path, target: Path) -> None:
    """Copy the package, with the extension of a build inside, and the tests."""
    (extension,) = build.glob("_native*.so")
    copy_package(target, extension)
    ignored = shutil.ignore_patterns("__pycache__", "sim")
    shutil.copytree(ROOT / "tests", target / "tests", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", target)
    (target / "native").symlink_to(ROOT / "native")  # of which tests compile programs


def run_test(folder: Path, test: str, removed: str) -> subprocess.CompletedProcess[str]:
    """Run a test without the guards that `removed` names."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "KVSTORE_REMOVED_GUARDS": removed},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def run(folder: Path, mutation: Mutation) -> tuple[str, float]:
    """What the failing test said, "" when none failed, and the seconds it took."""
    guards = ",".join((mutation.guard, *mutation.masked_by))
    whole = run_test(folder, mutation.test, "")
    assert whole.returncode == 0, f"with all guards:\n{whole.stdout[-4000:]}"
    started = time.monotonic()
    for _ in range(_TRIES):
        done = run_test(folder, mutation.test, guards)
        if done.returncode == 1:
            said = re.findall(r"^E +(?:AssertionError: )?(.*)$", done.stdout, re.MULTILINE)
            return (said or ["failed"])[0][:100], time.monotonic() - started
        assert done.returncode == 0, done.stdout[-4000:]
    return "", time.monotonic() - started


def main() -> int:
    """Run the chosen mutations, or all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    parser.add_argument("guards", nargs="*")
    options = parser.parse_args()
    print("| guard | protects | also taken out | s | the test said |")
    print("|---|---|---|---|---|")
    unseen = 0
    with tempfile.TemporaryDirectory(prefix="kvstore-mutations-") as folder:
        copy_aside(options.build, Path(folder))
        for mutation in MUTATIONS:
            if options.guards and mutation.guard not in options.guards:
                continue
            said, seconds = run(Path(folder), mutation)
            unseen += not said
            masks = ", ".join(mutation.masked_by) or "-"
            print(
                f"| {mutation.guard} | {mutation.protects} | {masks} | {seconds:.0f} | "
                f"{said or f'nothing in {_TRIES} runs'} |",
                flush=True,
            )
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
