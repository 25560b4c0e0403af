"""Which jobs are in which state, so that a thousand that wait cost nothing while ten run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tiermesh.core.job_states import OVER
from tiermesh.core.jobs import Job, JobId
from tiermesh.types import JobState


class JobIndex:
    """Of the open jobs among `records`, which is somebody else's and is read only. `put` at every change."""

    def __init__(self, records: Mapping[JobId, Job]) -> None:
        self._records = records
        self._states: dict[JobId, JobState] = {}
        self._members: dict[JobState, dict[JobId, None]] = {}
        for job in records.values():
            self.put(job)

    def __len__(self) -> int:
        """Jobs that are not over."""
        return len(self._states)

    def put(self, job: Job) -> None:
        """The job is in the state that its record says."""
        if self._states.get(job.id) == job.state:
            return
        self.remove(job.id)
        if job.state not in OVER:
            self._states[job.id] = job.state
            self._members.setdefault(job.state, {})[job.id] = None

    def remove(self, job: JobId) -> None:
        """Until it is put again."""
        if (state := self._states.pop(job, None)) is not None:
            del self._members[state][job]

    def ids(self) -> Iterable[JobId]:
        """Of all open jobs."""
        return tuple(self._states)

    def of(self, *states: JobState) -> list[Job]:
        """Those in these states, by how long they have been in them."""
        return [self._records[job] for state in states for job in self._members.get(state, ())]
