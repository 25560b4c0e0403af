"""How long one candidate is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tiermesh.errors import DeadlineExceeded, EngineFailed
from tiermesh.types import NodeId


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at one candidate. A node that goes down ends the wait for it at once, or after a grace once it spoke."""

    node: NodeId
    grace_s: float
    begun: bool = False
    down: bool = False
    _limit: asyncio.Timeout | None = None

    def node_went_down(self) -> None:
        """The view says that the candidate's node is down."""
        if self.down:
            return
        self.down = True
        if self._limit is not None and (when := self._limit.when()) is not None:
            self._limit.reschedule(min(when, self._patience_ends()))

    @asynccontextmanager
    async def until(self, deadline: float, *, silence_s: float | None = None) -> AsyncIterator[None]:
        """Bound what is awaited inside; raises `DeadlineExceeded` or `EngineFailed` when the time is up."""
        ends = deadline
        if silence_s is not None:
            ends = min(ends, asyncio.get_running_loop().time() + silence_s)
        if self.down:
            ends = min(ends, self._patience_ends())
        try:
            async with asyncio.timeout_at(ends) as self._limit:
                yield
        except TimeoutError:
            if self.down:
                raise EngineFailed("the node went down") from None
            if silence_s is None or asyncio.get_running_loop().time() >= deadline:
                raise DeadlineExceeded("no complete answer within the time limit of the request") from None
            raise EngineFailed(f"silent for {silence_s:g} s") from None
        finally:
            self._limit = None
        self.down = False

    def _patience_ends(self) -> float:
        return asyncio.get_running_loop().time() + (self.grace_s if self.begun else 0.0)
