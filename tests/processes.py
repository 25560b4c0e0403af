"""Processes that a test looks at and did not start itself."""

from __future__ import annotations

import psutil


def is_gone(process: psutil.Process) -> bool:
    """It may be reaped between two looks, or by nobody."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def has_ended(pid: int) -> bool:
    """The same of a process by its id."""
    try:
        return is_gone(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True
