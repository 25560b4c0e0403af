"""The daemon's clock: monotonic seconds that go on counting while the machine sleeps.

`time.monotonic` stands still during a suspend on Linux (CLOCK_MONOTONIC) and macOS (mach_absolute_time), so a
laptop that slept for an hour would not know that it had been away.
"""

from __future__ import annotations

import sys
import time


def now() -> float:
    """Seconds since some fixed moment, suspended time included."""
    return time.clock_gettime(_CLOCK)


def _suspend_aware_clock() -> int:
    if sys.platform == "linux":
        return time.CLOCK_BOOTTIME
    return time.CLOCK_MONOTONIC  # includes sleep on macOS, unlike time.monotonic()


_CLOCK = _suspend_aware_clock()
