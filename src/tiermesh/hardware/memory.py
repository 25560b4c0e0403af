"""This machine's memory now."""

from __future__ import annotations

import psutil

from tiermesh.core.admission import Machine


def read_memory() -> Machine:
    """A fraction of a millisecond. What can't be read is None."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, psutil.Error):
        return Machine(None, None)
    return Machine(memory.total, memory.available)
