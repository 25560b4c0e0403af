"""What the daemon runs on: libuv's event loop where it is installed, and a garbage collector that seldom looks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

YOUNG = 10_000
"""New objects until the collector looks at them: some requests' worth. At its usual 700 it looks twice a request."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """For `asyncio.Runner`; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows and PyPy
        return None
    return uvloop.new_event_loop


def calm_collector() -> None:
    """Call when all is started: what is there by now stays, and is not looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
