"""Records of jobs that other nodes sent: hostile until they were read here, because ids and digests become names of
files."""

from __future__ import annotations

import re

from tiermesh.core.jobs import Dataset, Job, job_from_dict
from tiermesh.protocol import ulid

MAX_ATTEMPT = 1_000_000
"""As in orders."""
_DIGEST = re.compile("[0-9a-f]{64}")


def record_of(data: object) -> Job:
    """The job that `data` describes. Raises ValueError."""
    job = job_from_dict(data)
    if not re.fullmatch(ulid.PATTERN, job.id):
        raise ValueError("id: a ULID was expected")
    if not all(_DIGEST.fullmatch(data.sha256) for data in datasets(job)):
        raise ValueError("data: SHA-256 in hexadecimal digits was expected")
    if not all(1 <= attempt.number <= MAX_ATTEMPT for attempt in job.attempts):
        raise ValueError(f"attempts: a number from 1 to {MAX_ATTEMPT} was expected")
    return job


def datasets(job: Job) -> list[Dataset]:
    """What it learns from."""
    return [each for each in (job.data, job.eval_data) if each is not None]
