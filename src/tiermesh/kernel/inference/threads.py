"""How many threads one worker computes with."""

from __future__ import annotations

import os

import psutil


def default_threads() -> int:
    """The cores that this process may run on; hyper-threads of one core do not help matrix products."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))
