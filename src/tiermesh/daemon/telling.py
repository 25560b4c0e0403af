"""What this node tells the coordinator about its attempts: at every change, and at least once a second while one runs.

Nothing is lost while there is no coordinator: the next one is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tiermesh.adapters.peers import Peers
from tiermesh.daemon.attempts import Attempts
from tiermesh.daemon.job_messenger import TYPED
from tiermesh.daemon.job_reactor import JobReactor
from tiermesh.errors import TiermeshError
from tiermesh.protocol.job_orders import TOLD_PATH, AttemptsTold, AttemptTold, HeardReport, ToldAnswer
from tiermesh.types import NodeId, View

log = logging.getLogger(__name__)

TELL_S = 1.0
"""A node that is silent for a lease, five of these by default, is taken for dead."""
GAP_S = 0.1
"""At least, between two: steps may take milliseconds."""


class Telling:
    """One for a node. `start` when there is a scheduler; `close` before it."""

    def __init__(
        self, *, me: NodeId, attempts: Attempts, reactor: JobReactor, peers: Peers, view: Callable[[], View]
    ) -> None:
        self._me = me
        self._attempts = attempts
        self._reactor = reactor
        self._peers = peers
        self._view = view
        self._news = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is something to tell."""
        self._news.set()

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.create_task(self._run(), name="telling")

    async def close(self) -> None:
        """Tell what is left, once, and end."""
        if self._loop is None:
            return
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        self._loop = None
        await self.tell()

    async def tell(self) -> None:
        """All that the coordinator does not know, now. Who can't be reached is told later."""
        view = self._view()
        said = self._attempts.to_tell(view.ballot)
        if not said or view.coordinator is None:
            return
        try:
            answers = await self._say(view, said)
        except (TiermeshError, ValueError) as error:
            log.debug("the coordinator was not told: %s", error)
            return
        await self._attempts.answered(said, answers, view.ballot)

    async def _run(self) -> None:
        """For ever."""
        while True:
            self._news.clear()
            await self.tell()
            await asyncio.sleep(GAP_S)
            try:
                async with asyncio.timeout(TELL_S - GAP_S):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _say(self, view: View, said: list[AttemptTold]) -> list[HeardReport]:
        if view.coordinator == self._me:
            return await self._reactor.hear(self._me, said)
        assert view.coordinator is not None
        leader = view.members[view.coordinator]
        body = AttemptsTold(attempts=said).model_dump(mode="json")
        answer = await self._peers.ask(leader.id, leader.status.addresses, TOLD_PATH, body, typed=TYPED)
        return ToldAnswer.model_validate(answer).attempts
