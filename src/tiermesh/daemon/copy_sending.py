"""Other nodes are ordered to keep copies of what this one has, and asked again until they hold them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from tiermesh.adapters.peers import Peers
from tiermesh.core.replicas import copy_order
from tiermesh.errors import InvalidInput, StateUnwritable, TiermeshError, Unavailable
from tiermesh.protocol.artifacts import COPIES_PATH, CopyOrder, CopyReport
from tiermesh.protocol.validation import validated
from tiermesh.types import NodeId, View

log = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""A receiver to which nothing more came for so long is given up, and the next one asked."""
AGAIN_S = 0.5
"""Between two questions how far a copy is."""
REMEMBERED = 4096
"""Jobs whose holders are known; of an older one that is not, the next copy goes wherever it goes."""
UNFIT: Mapping[str, type[TiermeshError]] = {StateUnwritable.type: StateUnwritable}
"""What a receiver will not get over by being asked again."""


class Sending:
    """Remembers who has copies of which job: they are asked first for the next one."""

    def __init__(self, me: NodeId, peers: Peers, view: Callable[[], View]) -> None:
        self._me = me
        self._peers = peers
        self._view = view
        self._held: dict[str, set[NodeId]] = {}

    def know(self, job: str, nodes: Iterable[NodeId]) -> None:
        """These have copies of it."""
        self._held.setdefault(job, set()).update(nodes)

    def forget(self, job: str) -> None:
        """It is over."""
        self._held.pop(job, None)

    async def spread(
        self, order: CopyOrder, wanted: int, on_held: Callable[[NodeId], None] = lambda _: None
    ) -> tuple[NodeId, ...]:
        """Until so many others hold it, or nobody is left to ask."""
        known = self._held.setdefault(order.job, set())
        if len(self._held) > REMEMBERED:
            del self._held[next(iter(self._held))]
        waiting = list(copy_order(self._view(), self._me, order.job, known))
        holders: list[NodeId] = []

        async def find_one() -> None:
            while waiting:
                if await self.hand_over(node := waiting.pop(0), order):
                    holders.append(node)
                    on_held(node)
                    return
                known.discard(node)

        await asyncio.gather(*(find_one() for _ in range(min(wanted, len(waiting)))))
        known.update(holders)
        return tuple(holders)

    async def hand_over(self, node: NodeId, order: CopyOrder) -> bool:
        """Does it hold it in the end? Bounded by its progress."""
        come, until = -1, time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            member = self._view().members.get(node)
            if member is None or member.state == "down":
                return False
            try:
                addresses = member.status.addresses
                answer = await self._peers.ask(node, addresses, COPIES_PATH, order.model_dump(), typed=UNFIT)
                report = validated(CopyReport, answer)
            except Unavailable:
                await asyncio.sleep(AGAIN_S)
                continue
            except (InvalidInput, StateUnwritable) as error:
                log.info("node %s keeps no copy of job %s: %s", member.status.name, order.job, error)
                return False
            if report.state == "held":
                return True
            if report.bytes > come:
                come, until = report.bytes, time.monotonic() + PATIENCE_S
            await asyncio.sleep(AGAIN_S)
        return False
