"""Who is next: higher priority first, then the submitter who has least at work, then the one whose last turn is longest
ago, then who has waited longest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tiermesh.core.jobs import Job


class Line:
    """Queued jobs in their order, which changes with every one that is begun.

    `turns` says when a job of each submitter was begun last, Unix seconds; it is kept up to date.
    """

    def __init__(self, queued: Iterable[Job], at_work: Iterable[Job], turns: dict[str, float]) -> None:
        self._busy = Counter(job.asked.submitter for job in at_work)
        self._turns = turns
        self._rest = list(queued)

    def __iter__(self) -> Iterator[Job]:
        self._sort()
        while self._rest:
            yield self._rest.pop()

    def begun(self, job: Job, at: float) -> None:
        """This one has got a node."""
        self._busy[job.asked.submitter] += 1
        self._turns[job.asked.submitter] = at
        self._sort()

    def _sort(self) -> None:
        self._rest.sort(key=self._place, reverse=True)

    def _place(self, job: Job) -> tuple[int, int, float, float, str]:
        asked = job.asked
        turn = self._turns.get(asked.submitter, 0.0)
        return -asked.priority, self._busy[asked.submitter], turn, asked.submitted_at, job.id
