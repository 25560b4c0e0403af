"""Who is next: higher priority first, then the submitter who has least at work, then who has waited longest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tiermesh.core.jobs import Job


class Line:
    """Queued jobs in their order, which changes with every one that is begun."""

    def __init__(self, queued: Iterable[Job], at_work: Iterable[Job]) -> None:
        self._busy = Counter(job.asked.submitter for job in at_work)
        self._rest = list(queued)

    def __iter__(self) -> Iterator[Job]:
        self._sort()
        while self._rest:
            yield self._rest.pop()

    def begun(self, job: Job) -> None:
        """This one has got a node."""
        self._busy[job.asked.submitter] += 1
        self._sort()

    def _sort(self) -> None:
        self._rest.sort(
            key=lambda job: (-job.asked.priority, self._busy[job.asked.submitter], *_age(job)), reverse=True
        )


def _age(job: Job) -> tuple[float, str]:
    return job.submitted_at, job.id
