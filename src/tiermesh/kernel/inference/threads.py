"""How many threads one worker computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil


def default_threads() -> int:
    """The cores that this process may run on; hyper-threads of one core do not help matrix products."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def environment(threads: int) -> Mapping[str, str]:
    """What OpenMP must be told before torch is imported.

    Threads that have nothing to do sleep instead of spinning: alone on a machine that costs a tenth of the speed, but
    beside one other busy process, spinning threads have been seen to lose nine tenths of it.
    """
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
