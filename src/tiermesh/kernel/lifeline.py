"""A kernel process lives no longer than the daemon that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
"""From `linux/prctl.h`."""
NICENESS = 10
"""Below the daemon, so that heartbeats win against matrix products, and still above idle-only work."""
READ_BYTES = 4096
"""The parent says nothing on this pipe; whatever comes is thrown away."""


def hold() -> None:
    """Exit when standard input ends, which the parent's death does; on Linux the system kills us as well.

    Call before anything slow is imported. The parent must start this process from a thread that lives as long as
    the parent, because Linux sends the signal when that thread ends.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
    threading.Thread(target=_exit_at_eof, name="lifeline", daemon=True).start()


def yield_to_daemon() -> None:
    """Lower this process's priority for good."""
    os.nice(NICENESS)


def _exit_at_eof() -> None:
    while os.read(0, READ_BYTES):
        pass
    os._exit(0)
