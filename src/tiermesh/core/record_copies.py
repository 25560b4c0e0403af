"""Which nodes have a copy of which record: what the coordinator was told since it leads."""

from __future__ import annotations

from collections.abc import Sequence

from tiermesh.core.job_rules import AGAIN_S
from tiermesh.core.jobs import NO_STAMP, Job, JobId, Stamp
from tiermesh.types import NodeId

PATIENCE_S = 3.0
"""A node that takes no copy for so long is asked after all others: its disk may be full."""


class RecordCopies:
    """`wanted` copies besides the coordinator's own. A node that has a stamp has all that was written before it."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._held: dict[JobId, dict[NodeId, Stamp]] = {}
        self._sent: dict[JobId, dict[NodeId, tuple[float, float]]] = {}
        """First and last time, of copies that were not answered."""

    def has(self, job: JobId, node: NodeId, stamp: Stamp) -> None:
        """`node` holds the record as of this stamp, or later."""
        held = self._held.setdefault(job, {})
        held[node] = max(stamp, held.get(node, stamp))
        self._sent.get(job, {}).pop(node, None)

    def forget(self, node: NodeId) -> set[JobId]:
        """What it holds is to be told anew: its disk may have lost some. Gives the jobs of which it was believed."""
        return {job for job, held in self._held.items() if held.pop(node, None) is not None}

    def is_known_elsewhere(self, job: JobId, others: Sequence[NodeId]) -> bool:
        """Have as many of the `others` (those that are up) any copy of it as there should be?"""
        held = self._held.get(job, {})
        return sum(node in held for node in others) >= min(self.wanted, len(others))

    def is_current_elsewhere(self, job: Job, others: Sequence[NodeId]) -> bool:
        """Do as many of them have it as it is?"""
        held = self._held.get(job.id, {})
        return sum(held.get(node, NO_STAMP) >= job.stamp for node in others) >= min(self.wanted, len(others))

    def due(self, now: float, job: Job, others: Sequence[NodeId]) -> list[NodeId] | None:
        """To whom a copy should go now; None when all is as it should be. `others` are up, the likeliest heir first."""
        held = self._held.get(job.id, {})
        behind = [node for node in others if held.get(node, NO_STAMP) < job.stamp]
        missing = min(self.wanted, len(others)) - (len(others) - len(behind))
        if missing <= 0:
            return None
        behind.sort(key=lambda node: (self._is_deaf(now, job.id, node), node not in held))
        return [node for node in behind[:missing] if self._send(now, job.id, node)]

    def changed(self, job: JobId) -> None:
        """There is a newer record: it goes out at once, whatever was sent before."""
        for node, (first, _) in self._sent.get(job, {}).items():
            self._sent[job][node] = first, -AGAIN_S

    def _is_deaf(self, now: float, job: JobId, node: NodeId) -> bool:
        first, _ = self._sent.get(job, {}).get(node, (now, now))
        return now - first >= PATIENCE_S

    def _send(self, now: float, job: JobId, node: NodeId) -> bool:
        sent = self._sent.setdefault(job, {})
        first, last = sent.get(node, (now, -AGAIN_S))
        if now - last < AGAIN_S:
            return False
        sent[node] = first, now
        return True
