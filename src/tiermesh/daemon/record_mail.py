"""Records on their way to other nodes: one request to a node at a time, with the newest of all that has gathered."""

from __future__ import annotations

from collections.abc import Callable

from tiermesh.core.jobs import Job, JobId, job_to_dict
from tiermesh.daemon.job_messenger import Messenger
from tiermesh.types import NodeId

BATCH_BYTES = 1 << 20
"""Sent at once."""


class RecordMail:
    """`on_copied` hears what a node has on its disk. What gets no answer is not sent again by itself."""

    def __init__(self, messenger: Messenger, on_copied: Callable[[Job, NodeId], None]) -> None:
        self._messenger = messenger
        self._on_copied = on_copied
        self._waiting: dict[NodeId, dict[JobId, Job]] = {}

    def post(self, job: Job, node: NodeId) -> bool:
        """True: `send` must be called for this node; else it is under way, and takes this along."""
        is_new = node not in self._waiting
        self._waiting.setdefault(node, {})[job.id] = job
        return is_new

    async def send(self, node: NodeId) -> None:
        """All that waits for this node. Raises what it says."""
        waiting = self._waiting[node]
        try:
            while waiting:
                sent, size = [], 0
                while waiting and size < BATCH_BYTES:
                    job = waiting.pop(next(iter(waiting)))
                    record = job_to_dict(job)
                    size += len(str(record))
                    sent.append((job, record))
                unread = await self._messenger.copy(node, (record for _, record in sent))
                for job, _ in sent:
                    if job.id not in unread:
                        self._on_copied(job, node)
        finally:
            del self._waiting[node]
