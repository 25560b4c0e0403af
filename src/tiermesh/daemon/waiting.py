"""Requests that wait for a free slot, or for a node to come back: bounded, fair between callers, by priority.

One queue a model. Within it a higher priority goes first, and within a priority callers take turns, so that whoever
sends a thousand requests delays the others by one each. The queues take turns too.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from tiermesh.daemon.ask import PRIORITIES, Caller, Priority
from tiermesh.errors import Unavailable

T = TypeVar("T")

LOOK_S = 0.1
"""Between two looks while anybody waits. Most changes are told; that a time has passed (Retry-After, a breaker's) is
not."""

LOOKED_AT = 4
"""Callers of each priority, at every change. One that waits for somebody else than the others do blocks nobody."""

MAX_BYTES = 256 * 1024 * 1024
"""Bodies of all that waits. A node of 1 GB that routes for others keeps room for itself."""


@dataclass(slots=True, eq=False)
class _Ticket(Generic[T]):
    ready: Callable[[], T | None]
    turn: asyncio.Future[T]


@dataclass(slots=True)
class _Line(Generic[T]):
    """Who waits for one model."""

    callers: dict[Priority, OrderedDict[str, deque[_Ticket[T]]]] = field(
        default_factory=lambda: {priority: OrderedDict() for priority in PRIORITIES}
    )
    length: int = 0

    def add(self, caller: Caller, ticket: _Ticket[T]) -> None:
        self.callers[caller.priority].setdefault(caller.key, deque()).append(ticket)
        self.length += 1

    def remove(self, caller: Caller, ticket: _Ticket[T]) -> None:
        tickets = self.callers[caller.priority].get(caller.key)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            self.length -= 1
            if not tickets:
                del self.callers[caller.priority][caller.key]

    def serve(self) -> bool:
        """Give the first one that can begin its turn. The first of a few callers are looked at: mostly, where the
        first one can't begin, nobody can, and a look is a route."""
        for callers in self.callers.values():
            for key in tuple(islice(callers, LOOKED_AT)):
                ticket = callers[key][0]
                got = ticket.ready()
                if got is not None:
                    callers[key].popleft()
                    self.length -= 1
                    if callers[key]:
                        callers.move_to_end(key)
                    else:
                        del callers[key]
                    ticket.turn.set_result(got)
                    return True
        return False


class Waiting(Generic[T]):
    """All queues of one node. `release` takes back a turn that its receiver did not live to see."""

    def __init__(self, release: Callable[[T], None], *, look_s: float = LOOK_S, max_bytes: int = MAX_BYTES) -> None:
        self._release = release
        self._look_s = look_s
        self._max_bytes = max_bytes
        self._lines: OrderedDict[str, _Line[T]] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def lengths(self) -> dict[str, int]:
        """How many wait, by model."""
        return {model: line.length for model, line in self._lines.items()}

    def anybody(self, model: str) -> bool:
        """Does anybody wait for this model? Then nobody else may go before."""
        return model in self._lines

    async def turn(
        self,
        model: str,
        caller: Caller,
        ready: Callable[[], T | None],
        *,
        timeout_s: float,
        length: int,
        size_bytes: int,
    ) -> T | None:
        """Wait until `ready` gives something; None: it did not within `timeout_s`.

        `ready` is called at any time, and what it gives is taken. Raises `Unavailable` when `length` wait already, or
        too many bytes.
        """
        line = self._lines.setdefault(model, _Line())
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        ticket = _Ticket(ready, turn)
        try:
            self._refuse(model, line.length, length, size_bytes)
            line.add(caller, ticket)
            self._bytes += size_bytes
        except Unavailable:
            self._drop(model, line)
            raise
        self._watch()
        try:
            async with asyncio.timeout(timeout_s):
                return await turn
        except TimeoutError:
            if not _given(turn):
                return None
            return turn.result()
        except asyncio.CancelledError:
            if _given(turn):
                self._release(turn.result())
            raise
        finally:
            self._bytes -= size_bytes
            line.remove(caller, ticket)
            self._drop(model, line)

    def poke(self) -> None:
        """Something changed: a slot is free, a node is there."""
        for model in tuple(self._lines):
            line = self._lines[model]
            while line.serve():
                self._lines.move_to_end(model)

    def _refuse(self, model: str, waiting: int, length: int, size_bytes: int) -> None:
        if waiting >= length:
            raise Unavailable(f"{waiting} requests wait for {model} on this node already; try again in a while")
        if self._bytes + size_bytes > self._max_bytes:
            raise Unavailable("too much waits on this node already; try again in a while, or ask another node")

    def _drop(self, model: str, line: _Line[T]) -> None:
        if not line.length:
            self._lines.pop(model, None)
        if not self._lines and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self.poke()
        if self._lines:
            self._watch()


def _given(turn: asyncio.Future[T]) -> bool:
    return turn.done() and not turn.cancelled()
