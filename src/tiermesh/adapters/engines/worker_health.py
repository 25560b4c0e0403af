"""What a worker of the kernel says of itself when it is asked how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

ASSUMED_SLOTS = 1
"""Before a worker has said how many sequences it computes at once, no more than one is promised."""
LIMIT_S = 1.0
"""A worker on this machine that is silent for this long is not ready."""
PROGRESS_STEPS = 10
"""Each step of a load is told to the whole mesh."""


@dataclass(frozen=True, slots=True)
class Health:
    """`progress` of its load, from 0 to 1 in `PROGRESS_STEPS`; `adapters` that it serves, once it is ready."""

    ready: bool = False
    slots: int = ASSUMED_SLOTS
    progress: float = 0.0
    adapters: frozenset[str] = frozenset()


async def ask_health(session: aiohttp.ClientSession, url: str) -> Health | None:
    """None: it gives no answer, or none that can be read."""
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as response:
            return read_health(await response.json())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError):
        return None


def read_health(body: Mapping[str, object]) -> Health:
    """Raises `ValueError` or `KeyError` for what is no report of health."""
    slots, progress, adapters = body.get("slots"), body.get("progress"), body.get("adapters")
    loaded = min(1.0, max(0.0, float(progress))) if isinstance(progress, int | float) else 0.0
    return Health(
        ready=body["status"] == "ready",
        slots=slots if isinstance(slots, int) and slots > 0 else ASSUMED_SLOTS,
        progress=int(loaded * PROGRESS_STEPS) / PROGRESS_STEPS,
        adapters=frozenset(map(str, adapters)) if isinstance(adapters, list) else frozenset(),
    )
