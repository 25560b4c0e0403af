"""A training job's life, as a table.

A job is accepted once and ends once. In between a node tries to do it: an attempt. An attempt that was stopped, or
whose node ended, is taken up again from its last checkpoint; that is the same attempt.

| state      | event       | next       |                                                          |
|------------|-------------|------------|----------------------------------------------------------|
| queued     | begin       | running    | an attempt was taken by a node                           |
| queued     | cancel      | cancelled  | nothing runs                                             |
| queued     | fail        | failed     | no node will ever take it                                |
| running    | interrupt   | queued     | the worker stopped after a checkpoint, or its node ended |
| running    | complete    | completed  |                                                          |
| running    | fail        | failed     |                                                          |
| running    | cancel      | cancelling | the worker saves first                                   |
| cancelling | interrupt   | cancelled  |                                                          |
| cancelling | fail        | cancelled  | nobody wants to know any more                            |
| cancelling | complete    | completed  | the result was there before the order to stop            |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NewType

from tiermesh.errors import NotPossibleNow
from tiermesh.types import JobState

JobId = NewType("JobId", str)
"""A ULID that the submitter made: the job's idempotency key."""
JobEvent = Literal["begin", "interrupt", "complete", "fail", "cancel"]

TRANSITIONS: Mapping[tuple[JobState, JobEvent], JobState] = {
    ("queued", "begin"): "running",
    ("queued", "cancel"): "cancelled",
    ("queued", "fail"): "failed",
    ("running", "interrupt"): "queued",
    ("running", "complete"): "completed",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelling",
    ("cancelling", "interrupt"): "cancelled",
    ("cancelling", "fail"): "cancelled",
    ("cancelling", "complete"): "completed",
}
OVER: frozenset[JobState] = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file by its content; `name` is what its owner calls it, and says its format."""

    sha256: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was asked for and what has become of it. Times are Unix seconds. Replaced whole."""

    id: JobId
    name: str
    spec: Mapping[str, Any]
    """A checked training spec as plain JSON; its paths are names of datasets."""
    data: Dataset
    eval_data: Dataset | None = None
    state: JobState = "queued"
    attempt: int = 1
    submitted_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    reason: str = ""
    """Why it waits, or how it ended, for a person."""
    failure: str | None = None
    """The kind of failure, where there is one."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the attempt told at its good end."""

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    def after(
        self,
        event: JobEvent,
        at: float,
        *,
        reason: str = "",
        failure: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> Job:
        """The job after `event`. Raises `NotPossibleNow` for what the table does not have."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise NotPossibleNow(f"job {self.name} is {self.state}: nothing is left to {event}")
        return replace(
            self,
            state=state,
            reason=reason,
            failure=failure if state == "failed" else None,
            result=result or {},
            started_at=at if event == "begin" and self.started_at is None else self.started_at,
            ended_at=at if state in OVER else None,
        )

    def is_same_request(self, other: Job) -> bool:
        """Was the same thing asked for? A name is a label."""
        return (self.spec, self.data, self.eval_data) == (other.spec, other.data, other.eval_data)


def next_in_line(jobs: Iterable[Job]) -> Job | None:
    """The one that has waited longest."""
    waiting = [job for job in jobs if job.state == "queued"]
    return min(waiting, key=lambda job: (job.submitted_at, job.id), default=None)


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, with a number after it when another job has that name."""
    names = set(taken)
    numbered = (f"{wanted}-{number}" for number in range(2, len(names) + 3))
    return wanted if wanted not in names else next(name for name in numbered if name not in names)
