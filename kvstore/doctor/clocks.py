"""Checks of the clocks: expiry and the records of objects depend on them."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host

_MOST_ERROR_MS = 1000.0
_MOST_DIFFERENCE_S = 2.0


def wall_clock(host: Host) -> Iterator[Finding]:
    """Whether the wall clock is synchronized; expiry on NVMe uses it."""
    state = host.clock(host.proc)
    fix = "run chronyd or systemd-timesyncd on the host"
    if state.synchronized is None:
        yield ok("the kernel does not tell whether the clock is synchronized")
    elif not state.synchronized:
        yield warn("the clock is not synchronized: objects on NVMe may expire early or late", fix)
    elif state.most_error_ms > _MOST_ERROR_MS:
        yield warn(f"the clock may be off by {state.most_error_ms:,.0f} ms", fix)
    else:
        yield ok(f"the clock is synchronized, to {state.most_error_ms:,.0f} ms or better")


def boot_clock(host: Host) -> Iterator[Finding]:
    """Whether CLOCK_BOOTTIME is sane; heartbeats, leases and expiry in memory use it."""
    state = host.clock(host.proc)
    fix = "a sandboxed kernel or a time namespace changes it: run kvstore outside of that"
    if state.boottime_s < state.monotonic_s:
        yield fail("CLOCK_BOOTTIME is behind CLOCK_MONOTONIC, which it may never be", fix)
    elif state.uptime_s is not None and abs(state.boottime_s - state.uptime_s) > _MOST_DIFFERENCE_S:
        yield fail(
            f"CLOCK_BOOTTIME says {state.boottime_s:,.0f} s, /proc/uptime {state.uptime_s:,.0f} s",
            fix,
        )
    else:
        yield ok("CLOCK_BOOTTIME agrees with the uptime")
