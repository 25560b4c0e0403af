"""Whose records a coordinator still has to fetch: of all members when it begins to lead, later of whoever comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tiermesh.core.job_rules import AGAIN_S, COLLECT_S
from tiermesh.types import NodeId, SessionId


class Handover:
    """From the moment that this node begins to lead. `is_over` once nothing is ordered too early any more."""

    def __init__(self, now: float) -> None:
        self._until = now + COLLECT_S
        self._missing: dict[NodeId, float] = {}
        """When each was asked last."""
        self._sessions: dict[NodeId, SessionId] = {}

    def members(self, up: Mapping[NodeId, SessionId]) -> None:
        """These other nodes are up: who was not, or has been restarted, is asked."""
        for node, session in up.items():
            if self._sessions.get(node) != session:
                self.want(node)
        self._missing = {node: asked for node, asked in self._missing.items() if node in up}
        self._sessions = dict(up)

    def again(self) -> None:
        """The ballot was raised: members may have followed another one in between."""
        self._sessions.clear()

    def want(self, node: NodeId) -> None:
        """`node` knows of something that is not known here."""
        self._missing.setdefault(node, -AGAIN_S)

    def got(self, node: NodeId) -> None:
        """All that `node` has is known here now."""
        self._missing.pop(node, None)

    def due(self, now: float) -> Iterable[NodeId]:
        """Who is to be asked now, for the first time or again."""
        for node, asked in self._missing.items():
            if now - asked >= AGAIN_S:
                self._missing[node] = now
                yield node

    @property
    def is_missing_some(self) -> bool:
        """Is anybody's answer awaited?"""
        return bool(self._missing)

    def is_over(self, now: float) -> bool:
        """May orders be given?"""
        return now >= self._until or not self._missing
