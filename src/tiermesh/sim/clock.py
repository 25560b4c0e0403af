"""The clock of the simulation: a heap of things to do, in order of time, then of arrival."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Simulated seconds; nothing happens between two entries."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action(*arguments)` at `when`, or now if that is past."""
        self._pushed += 1
        heapq.heappush(self._heap, (max(when, self.now), self._pushed, action, arguments))

    def run(self, until: float) -> None:
        """Do everything up to `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            action(*arguments)
        self.now = max(self.now, until)
