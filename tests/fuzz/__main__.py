"""Runs a target below Atheris: python -m tests.fuzz TARGET [libFuzzer's options and folders]."""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["kvstore", "msgspec", "json", "aiohttp"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [-option=value] [FOLDER …]")
    name = sys.argv.pop(1)
    # libFuzzer starts this program again, through a shell, to merge folders.
    sys.argv[0] = f"{sys.executable} -m tests.fuzz {name}"
    logging.disable(logging.WARNING)  # damaged files are all it would speak of
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


main()
