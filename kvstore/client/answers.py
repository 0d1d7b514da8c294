"""Translates the native numbers: statuses, miss reasons, and the arguments of a put."""

from __future__ import annotations

from typing import Literal, cast

from kvstore import _native
from kvstore.errors import RAISED, InvalidArgumentError, MissReason, Status, error_for
from kvstore.options import one_of, whole_number

PinLevel = Literal["soft", "hard"]

_STATUS = {int(status): status for status in Status}
PINS: dict[str | None, int] = {None: 0, "soft": 1, "hard": 2}
PIN_NAMES: dict[int, PinLevel | None] = {0: None, 1: "soft", 2: "hard"}
TIERS = {0: "dram", 1: "nvme"}
MAX_REPLICAS = 8
_MAX_THREADS = 256
_MAX_STRIDE = (1 << 31) - 1
_MAX_TTL_MS = (1 << 32) - 1


def status_of(code: int) -> Status:
    """Return the status with this number; Internal for an unknown number."""
    return _STATUS.get(code, Status.Internal)


def statuses_of(codes: list[int]) -> list[Status]:
    """Return the status of each row of a batch."""
    return [_STATUS.get(code, Status.Internal) for code in codes]


REASONS = tuple(
    MissReason(_native.miss_reason_name(number)) for number in range(_native.MISS_REASON_COUNT)
)


def name_reasons(reasons: list[MissReason] | None) -> None:
    """Replace the numbers that the native side wrote to a caller's list by their names."""
    if reasons is not None:
        reasons[:] = [REASONS[cast(int, number)] for number in reasons]


def answer(code: int) -> Status:
    """Return the status of a single call; raise those that the caller has to fix."""
    status = status_of(code)
    if status in RAISED:
        raise error_for(code)
    return status


def kept_as(replicas: int, pin: PinLevel | None, ttl_ms: int | None) -> tuple[int, int, int]:
    """Check the options of a put; returns replicas, pin level, time to live (0: none)."""
    count = whole_number("replicas", replicas, 1, MAX_REPLICAS)
    one_of("pin", pin, PINS)
    return count, PINS[pin], whole_number("ttl_ms", ttl_ms, 1, _MAX_TTL_MS, optional=True)


def checked_stride(stride: int) -> int:
    """Return the objects of one page; raise InvalidArgumentError unless they are 1 or more."""
    return whole_number("stride", stride, 1, _MAX_STRIDE)


def checked_lease(lease_ms: int | None) -> int:
    """Return the duration of leases, 0 for none; raise InvalidArgumentError when it is wrong."""
    return whole_number("lease_ms", lease_ms, 1, _native.MAX_LEASE_MS, optional=True)


def checked_wait(wait_ms: int | None, local: bool) -> int:
    """Return the time to wait, 0 for none; raise InvalidArgumentError when it is wrong."""
    if wait_ms and local:
        raise InvalidArgumentError("wait_ms waits at the master, which local does not ask")
    return whole_number("wait_ms", wait_ms, 0, _native.MAX_TIMEOUT_MS, optional=True)


def check_threads(name: str, threads: int) -> None:
    """Raise InvalidArgumentError unless a number of threads is 1 to 256."""
    whole_number(name, threads, 1, _MAX_THREADS)
