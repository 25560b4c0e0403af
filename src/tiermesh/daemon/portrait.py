"""What this node says of itself: one `Status`, drawn again whenever something changes, and not too often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

from tiermesh.adapters.engines import Engine
from tiermesh.types import Load, Status, Tier

GAP_S = 0.05
"""At most one new status in this time: load changes with every request, and each change travels to the coordinator."""


class Portrait:
    """Watches the engines and tells `on_change` each new status. Owner of `status`.

    `first.tier` is what was declared, if anything was; `tier` is this node's tier as soon as it has an engine.
    """

    def __init__(self, first: Status, on_change: Callable[[Status], None], *, tier: Tier) -> None:
        self._status = first
        self._tier_without_engine = first.tier
        self._tier = tier
        self._on_change = on_change
        self._engines: Callable[[], Iterable[Engine]] = tuple
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def status(self) -> Status:
        return self._status

    def watch(self, engines: Callable[[], Iterable[Engine]]) -> None:
        """`engines` gives those of this node; look at them once now."""
        self._engines = engines
        self._draw()

    def redraw(self) -> None:
        """Something may have changed: look at it within `GAP_S`."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(GAP_S, self._draw)

    def change(self, **facts: object) -> None:
        """Set fields of the status itself (`state`, `addresses`), at once."""
        self._tell(replace(self._status, **facts))  # type: ignore[arg-type]

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _draw(self) -> None:
        self._timer = None
        engines = tuple(self._engines())
        self._tell(
            replace(
                self._status,
                tier=self._tier if engines else self._tier_without_engine,
                models=tuple(model for engine in engines for model in engine.models),
                engines=tuple(engine.info for engine in engines),
                load=total_load(engine.load for engine in engines),
            )
        )

    def _tell(self, status: Status) -> None:
        if status != self._status:
            self._status = status
            self._on_change(status)


def total_load(loads: Iterable[Load]) -> Load:
    """The sum over engines."""
    loads = tuple(loads)
    return Load(sum(x.active for x in loads), sum(x.slots for x in loads), sum(x.queued for x in loads))
