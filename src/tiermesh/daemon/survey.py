"""Ask every node of the mesh the same small question, all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tiermesh.adapters.peers import Peers
from tiermesh.errors import InvalidInput, TiermeshError
from tiermesh.types import Member, NodeId, View

ANSWER_S = 3.0
"""Answers take milliseconds. A person waits for the slowest, and a node that is this slow is as good as gone."""

AT_ONCE = 64
"""Questions under way at a time: most meshes whole, and no burst of sockets in the largest."""

ReportT = TypeVar("ReportT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Asked(Generic[ReportT]):
    """What asking one node came to: a report, or the reason why there is none."""

    member: Member
    report: ReportT | None
    problem: str | None
    took_ms: float | None


class Survey:
    """Asks on behalf of this node."""

    def __init__(self, me: NodeId, view: Callable[[], View], peers: Peers) -> None:
        self._me = me
        self._view = view
        self._peers = peers

    @property
    def me(self) -> NodeId:
        return self._me

    async def ask(self, path: str, body: Mapping[str, object], kind: type[ReportT]) -> list[Asked[ReportT]]:
        """Every other member, coordinator first, then by name. Those that are down are not asked."""
        view = self._view()
        turns = asyncio.Semaphore(AT_ONCE)
        members = sorted(view.members.values(), key=lambda m: (m.id != view.coordinator, m.status.name, m.id))
        return list(await asyncio.gather(*(self._ask(m, turns, path, body, kind) for m in members if m.id != self._me)))

    async def _ask(
        self,
        member: Member,
        turns: asyncio.Semaphore,
        path: str,
        body: Mapping[str, object],
        kind: type[ReportT],
    ) -> Asked[ReportT]:
        if member.state == "down":
            return Asked(member, None, "it is down", None)
        loop = asyncio.get_running_loop()
        async with turns:
            asked_at = loop.time()
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await self._peers.ask(member.id, member.status.addresses, path, body)
                report = kind.model_validate(answer)
            except TimeoutError:
                return Asked(member, None, f"it says nothing within {ANSWER_S:g} s", None)
            except ValidationError:
                return Asked(member, None, "its answer can't be read", None)
            except InvalidInput as error:
                return Asked(member, None, f"it refuses the question: {error}", None)
            except TiermeshError as error:
                return Asked(member, None, str(error), None)
            return Asked(member, report, None, 1000 * (loop.time() - asked_at))
