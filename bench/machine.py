"""Describes the machine and the versions behind a result."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from bench.processes import ROOT

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_FALLBACK_CACHE_BYTES = 32 << 20
_LARGEST_CALL_BYTES = 64 << 20
_UNITS = {"K": 10, "M": 20, "G": 30}


def last_level_cache_bytes() -> int:
    """Size of the largest cache of the first processor, as sysfs says it."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip())
        if match:
            sizes.append(int(match[1]) << _UNITS.get(match[2], 0))
    return max(sizes, default=_FALLBACK_CACHE_BYTES)


def working_set_bytes() -> int:
    """At least four times the last-level cache, in whole calls of the largest shape."""
    wanted = 4 * last_level_cache_bytes()
    return -(-wanted // _LARGEST_CALL_BYTES) * _LARGEST_CALL_BYTES


def _first(path: str, pattern: str) -> str:
    try:
        match = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return "unknown"
    return match[1].strip() if match else "unknown"


def _says(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return "not there"
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else "not there"


def processor() -> str:
    return _first("/proc/cpuinfo", r"^model name\s*:\s*(.*)$")


def describe() -> dict[str, Any]:
    """Return all that a reader of the results may want to know about the machine."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "processors": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_kib": _first("/proc/meminfo", r"^MemTotal:\s*(\d+)"),
        "kernel": platform.release(),
        "huge_pages": _first("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        "tcp_congestion": _first("/proc/sys/net/ipv4/tcp_congestion_control", r"(.*)"),
        "python": platform.python_version(),
        "compiler": _says("g++", "--version"),
        "commit": _says("git", "rev-parse", "--short=12", "HEAD"),
        "changed_files": _says("git", "status", "--porcelain", "--untracked-files=no") != "",
    }


def short_name() -> str:
    """A folder's name for this kind of machine."""
    name = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    return f"{name}-{os.cpu_count()}cpu"
