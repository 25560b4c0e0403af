"""Requests that wait for a free slot, or for a node to come back: bounded, fair between callers, by priority.

One line for each wish: whoever stands in it would be served by the same candidates, so that where the first one can't
begin, nobody can. Within it a higher priority goes first, and within a priority callers take turns, so that whoever
sends a thousand requests delays the others by one each. The lines take turns too. Those who wait for somebody in
particular (their first choices have failed, or a stream must go on) stand apart from their line: they go first, and
nobody waits behind them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from tiermesh.daemon.ask import PRIORITIES, Caller, Priority
from tiermesh.errors import Unavailable
from tiermesh.types import Tier

T = TypeVar("T")

LOOK_S = 0.1
"""Between two looks while anybody waits. Most changes are told; that a time has passed (Retry-After, a breaker's) is
not."""

LOOKED_AT = 4
"""Callers of each priority, and of those who stand apart, at every change. Each look is a route."""

MAX_BYTES = 256 * 1024 * 1024
"""Bodies of all that waits. A node of 1 GB that routes for others keeps room for itself."""


class Wish(NamedTuple):
    """What is waited for. `model` is as callers are told of it; `tier` where no other one will do."""

    model: str
    tier: Tier | None = None
    any_model: bool = False


@dataclass(slots=True, eq=False)
class _Ticket(Generic[T]):
    ready: Callable[[], T | None]
    turn: asyncio.Future[T]


@dataclass(slots=True)
class _Line(Generic[T]):
    """Who waits for one thing."""

    callers: dict[Priority, OrderedDict[str, deque[_Ticket[T]]]] = field(
        default_factory=lambda: {priority: OrderedDict() for priority in PRIORITIES}
    )
    apart: deque[_Ticket[T]] = field(default_factory=deque)
    length: int = 0
    """Of both together."""

    def add(self, caller: Caller, ticket: _Ticket[T], *, apart: bool) -> None:
        queue = self.apart if apart else self.callers[caller.priority].setdefault(caller.key, deque())
        queue.append(ticket)
        self.length += 1

    def remove(self, caller: Caller, ticket: _Ticket[T]) -> None:
        if ticket in self.apart:
            self.apart.remove(ticket)
            self.length -= 1
            return
        tickets = self.callers[caller.priority].get(caller.key)
        if tickets is not None and ticket in tickets:
            tickets.remove(ticket)
            self.length -= 1
            if not tickets:
                del self.callers[caller.priority][caller.key]

    def serve(self) -> bool:
        """Give the first one that can begin its turn. The first of a few callers are looked at: mostly, where the
        first one can't begin, nobody can. Who has given up, and is about to leave the line, is passed over."""
        return self._serve_apart() or self._serve_caller()

    def _serve_apart(self) -> bool:
        for _ in range(min(LOOKED_AT, len(self.apart))):
            ticket = self.apart.popleft()
            got = None if ticket.turn.done() else ticket.ready()
            if got is not None:
                self.length -= 1
                ticket.turn.set_result(got)
                return True
            self.apart.append(ticket)  # the next ones are looked at next time
        return False

    def _serve_caller(self) -> bool:
        for callers in self.callers.values():
            for key in tuple(islice(callers, LOOKED_AT)):
                ticket = next((each for each in callers[key] if not each.turn.done()), None)
                got = None if ticket is None else ticket.ready()
                if ticket is not None and got is not None:
                    callers[key].remove(ticket)
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
        self._lines: OrderedDict[Wish, _Line[T]] = OrderedDict()
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def lengths(self) -> dict[str, int]:
        """How many wait, by model."""
        lengths: Counter[str] = Counter()
        for wish, line in self._lines.items():
            lengths[wish.model] += line.length
        return dict(lengths)

    def anybody(self, wish: Wish) -> bool:
        """Does anybody stand in line for this? Then nobody else may go before."""
        line = self._lines.get(wish)
        return line is not None and line.length > len(line.apart)

    async def turn(
        self,
        wish: Wish,
        caller: Caller,
        ready: Callable[[], T | None],
        *,
        timeout_s: float,
        length: int | None,
        size_bytes: int,
        apart: bool = False,
    ) -> T | None:
        """Wait until `ready` gives something; None: it did not within `timeout_s`.

        `ready` is called at any time, and what it gives is taken. Raises `Unavailable` when `length` wait for the model
        already (None: however many), or too many bytes. `apart`: it waits for somebody in particular.
        """
        line = self._lines.setdefault(wish, _Line())
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        ticket = _Ticket(ready, turn)
        try:
            self._refuse(wish.model, length, size_bytes)
            line.add(caller, ticket, apart=apart)
            self._bytes += size_bytes
        except Unavailable:
            self._drop(wish, line)
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
            self._drop(wish, line)

    def poke(self) -> None:
        """Something changed: a slot is free, a node is there."""
        for wish in tuple(self._lines):
            line = self._lines[wish]
            while line.serve():
                self._lines.move_to_end(wish)

    def _refuse(self, model: str, length: int | None, size_bytes: int) -> None:
        waiting = sum(line.length for wish, line in self._lines.items() if wish.model == model)
        if length is not None and waiting >= length:
            raise Unavailable(f"{waiting} requests wait for {model} on this node already; try again in a while")
        if size_bytes and self._bytes + size_bytes > self._max_bytes:
            raise Unavailable("too much waits on this node already; try again in a while, or ask another node")

    def _drop(self, wish: Wish, line: _Line[T]) -> None:
        if not line.length and self._lines.get(wish) is line:  # after its end there may be another one
            del self._lines[wish]
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
