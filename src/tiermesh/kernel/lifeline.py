"""A kernel process lives no longer than the daemon that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
"""From `linux/prctl.h`."""
NICENESS = 10
"""Below the daemon, so that heartbeats win against matrix products, and still above idle-only work."""
READ_BYTES = 4096
"""The parent says nothing on this pipe; whatever comes is thrown away."""


def hold(at_end: Callable[[], None] | None = None) -> None:
    """Exit when standard input ends, which the parent's death does; on Linux the system kills us as well.

    With `at_end` the process ends itself instead: it is called from a thread of its own when standard input ends, and
    the system's signal is SIGTERM, which the caller handles. Call before anything slow is imported. The parent must
    start this process from a thread that lives as long as the parent, because Linux sends the signal when that thread
    ends.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        last_signal = signal.SIGKILL if at_end is None else signal.SIGTERM
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, last_signal)
        if os.getppid() != parent:
            _exit() if at_end is None else at_end()
    threading.Thread(target=_wait_for_eof, args=[at_end or _exit], name="lifeline", daemon=True).start()


def yield_to_daemon() -> None:
    """Lower this process's priority for good."""
    os.nice(NICENESS)


def _wait_for_eof(then: Callable[[], None]) -> None:
    while os.read(0, READ_BYTES):
        pass
    then()


def _exit() -> None:
    os._exit(0)
