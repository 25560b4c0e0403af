"""Which event loop the daemon runs on: libuv's where it is installed, which does the same with half the work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For `asyncio.Runner`; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows and PyPy
        return None
    return uvloop.new_event_loop
