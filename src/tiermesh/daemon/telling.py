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
from tiermesh.errors import TiermeshError, Unavailable
from tiermesh.protocol.job_orders import TOLD_PATH, AttemptsTold, AttemptTold, HeardReport, ToldAnswer
from tiermesh.types import NodeId, View

log = logging.getLogger(__name__)

TELL_S = 1.0
"""A node that is silent for a lease, five of these by default, is taken for dead."""
GAP_S = 0.1
"""At least, between two: steps may take milliseconds."""
AT_ONCE = 100
"""Attempts in one message: some hundred kilobytes, and what a coordinator writes within its answer's time."""


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
        self._turn = 0
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
        said = self._some(self._attempts.to_tell(view.ballot))
        if not said or view.coordinator is None:
            return
        try:
            await self._attempts.answered(said, await self._say(view, said), view.ballot)
        except (TiermeshError, ValueError) as error:
            log.debug("the coordinator was not told: %s", error)

    async def _run(self) -> None:
        """For ever."""
        while True:
            self._news.clear()
            try:
                await self.tell()
            except Exception:  # a node that tells nothing any more is taken for dead, attempt after attempt
                log.exception("the coordinator was not told")
            await asyncio.sleep(GAP_S)
            try:
                async with asyncio.timeout(TELL_S - GAP_S):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _some(self, said: list[AttemptTold]) -> list[AttemptTold]:
        """What one message takes: the last, which may be the one that runs, and as many of the others in their turn."""
        if len(said) <= AT_ONCE:
            return said
        *others, last = said
        first = self._turn % len(others)
        self._turn = first + AT_ONCE - 1
        return [*(others[first:] + others[:first])[: AT_ONCE - 1], last]

    async def _say(self, view: View, said: list[AttemptTold]) -> list[HeardReport]:
        if view.coordinator == self._me:
            return await self._reactor.hear(self._me, said)
        leader = None if view.coordinator is None else view.members.get(view.coordinator)
        if leader is None:
            raise Unavailable("nobody knows where the coordinator is")
        body = AttemptsTold(attempts=said).model_dump(mode="json")
        answer = await self._peers.ask(leader.id, leader.status.addresses, TOLD_PATH, body, typed=TYPED)
        return ToldAnswer.model_validate(answer).attempts
