"""Notices that this machine's addresses changed: another Wi-Fi, a cable, a VPN."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tiermesh.adapters.interfaces import Interface, choose
from tiermesh.errors import InvalidConfig

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Reading the addresses takes a millisecond; a person who changes networks waits longer than this anyway."""


async def run_watch(
    wanted: str | None, current: tuple[Interface, ...], on_change: Callable[[tuple[Interface, ...]], None]
) -> None:
    """Look for ever, and tell `on_change` each new set of interfaces."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            found = await asyncio.to_thread(choose, wanted)
        except (InvalidConfig, OSError):
            continue  # the wanted interface is gone for now
        if found and set(found) != set(current):
            current = found
            log.info("this machine's addresses changed: %s", ", ".join(str(i.ip) for i in found))
            on_change(found)
