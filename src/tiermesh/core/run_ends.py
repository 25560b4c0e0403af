"""When the runs of a job that is over may let go of what they needed in order to go on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tiermesh.core.jobs import Job, JobId
from tiermesh.types import NodeId

COMPLETED_KEPT_S = 86400.0
"""The result is what was asked for; until tomorrow a person may want to compare it with what came before."""
OTHERS_KEPT_S = 30 * 86400.0
"""Cancelled or failed: the last checkpoint is all that there is of it. A month, for whoever comes back from a
holiday."""
LOW_BYTES = 4 << 30
"""Of the disk: with less than this free, jobs that are completed don't wait for their time. A node takes no data from
1 GiB on, and a checkpoint of a small model has to fit in between."""


@dataclass(frozen=True, slots=True)
class Ends:
    """`due`: their time is over. `early`: they may go when the disk has little room left, the longest over first."""

    due: tuple[JobId, ...]
    early: tuple[JobId, ...]


def ends(jobs: Iterable[Job], wall: float) -> Ends:
    """Of these; `wall` is Unix seconds. Those that are not over are left alone, and a completed one whose result its
    node could give nobody: what it has may be all that there is."""
    over = [job for job in jobs if job.is_over and job.ended_at is not None and not _is_only_here(job)]
    over.sort(key=lambda job: (job.ended_at, job.id))
    due = [job for job in over if wall > (job.ended_at or 0.0) + _kept_s(job)]
    early = [job for job in over if job.state == "completed" and job not in due]
    return Ends(tuple(job.id for job in due), tuple(job.id for job in early))


def artifact_on(job: Job, node: NodeId) -> str | None:
    """The artifact of a completed job's result, where `node` trained it: whole there, before anything of it goes."""
    result = job.result
    return result.told.artifact if result is not None and result.told is not None and result.node == node else None


def _kept_s(job: Job) -> float:
    return COMPLETED_KEPT_S if job.state == "completed" else OTHERS_KEPT_S


def _is_only_here(job: Job) -> bool:
    result = job.result
    return result is not None and (result.told is None or not result.told.artifact)
