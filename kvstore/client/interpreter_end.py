"""What a store leaves when the interpreter ends while other threads still run."""

from __future__ import annotations

import atexit
import sys

from kvstore import _native


def _expect_leaks() -> None:
    """Keep the extension from listing what daemon threads still use: nobody can release it."""
    if len(sys._current_frames()) > 1:
        _native.set_leak_warnings(False)


atexit.register(_expect_leaks)
