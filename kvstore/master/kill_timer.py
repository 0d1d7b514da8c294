"""Has the kernel kill this process at a given time, whatever state it is in then.

A thread that watches the clock is late when the process was stopped, swapped out or busy, and the
others act before it. The kernel's timer is not: SIGKILL ends a stopped process, too, and no thread
runs another instruction. It counts the time during which the machine was suspended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading

from kvstore.errors import IoError

_CLOCK_BOOTTIME = 7
_TIMER_ABSTIME = 1
_SIGEV_SIGNAL = 0
_SIGEVENT_BYTES = 64


class KillTimer:
    """A timer of the kernel, whose end is SIGKILL."""

    def __init__(self) -> None:
        """Make the timer; it runs from the first `set`.

        Raises:
            IoError: The kernel refused.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        self._mutex = threading.Lock()
        event = ctypes.create_string_buffer(_SIGEVENT_BYTES)
        # struct sigevent: the value (8 bytes), the signal, how to notify.
        struct.pack_into("=qii", event, 0, 0, signal.SIGKILL, _SIGEV_SIGNAL)
        if self._libc.timer_create(_CLOCK_BOOTTIME, event, ctypes.byref(self._timer)):
            raise IoError(f"timer_create: {os.strerror(ctypes.get_errno())}")

    def set(self, at_ms: int) -> None:
        """Kill this process at a time.

        Args:
            at_ms: of CLOCK_BOOTTIME, as kvstore.clock.monotonic_ms(); 0: never.

        Raises:
            IoError: The kernel refused.
        """
        # struct itimerspec: no interval, then the time as seconds and nanoseconds.
        when = struct.pack("=qqqq", 0, 0, at_ms // 1000, at_ms % 1000 * 1_000_000)
        with self._mutex:
            if self._libc.timer_settime(self._timer, _TIMER_ABSTIME, when, None):
                raise IoError(f"timer_settime: {os.strerror(ctypes.get_errno())}")

    def close(self) -> None:
        """Delete the timer."""
        with self._mutex:
            self._libc.timer_delete(self._timer)
