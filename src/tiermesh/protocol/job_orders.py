"""Training jobs as nodes speak of them: `/mesh/v1/jobs`, `/mesh/v1/attempts`, `/mesh/v1/estimates`. Records, estimates
and what is told of an attempt travel as `core.codec` writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tiermesh.protocol.cluster import BallotReport
from tiermesh.protocol.jobs import CrashKept, DataRef, Ulid
from tiermesh.protocol.validation import Wire

JOBS_PATH = "/mesh/v1/jobs"
"""`/submit`, `/decide`, `/find` and `/list` are the coordinator's; `/records` and `/collect` everybody's."""
ATTEMPTS_PATH = "/mesh/v1/attempts"
TOLD_PATH = f"{ATTEMPTS_PATH}/told"
STOP_PATH = f"{ATTEMPTS_PATH}/stop"
EVENTS_PATH = f"{ATTEMPTS_PATH}/events"
LOG_PATH = f"{ATTEMPTS_PATH}/log"
CRASH_PATH = f"{ATTEMPTS_PATH}/crash"
ESTIMATES_PATH = "/mesh/v1/estimates"

AttemptNumber = Annotated[int, Field(ge=1, le=1_000_000)]
"""A job that moved every second would have so many after eleven days; the numbers of its events begin with it."""


class DataAsked(DataRef):
    """A dataset, and the nodes that may have it."""

    size_bytes: int = 0
    holders: list[str] = Field(default_factory=list)


class CheckpointRef(Wire):
    """A checkpoint by the digest of its manifest, and the nodes that have it."""

    step: int
    artifact: str = ""
    holders: list[str] = Field(default_factory=list)


class AttemptKey(Wire):
    """One attempt; `made` is the ballot under which it was ordered first."""

    job: Ulid
    attempt: AttemptNumber
    made: BallotReport


class WorkAsked(Wire):
    """What is to be trained, or what the price of training is asked for."""

    job: Ulid
    name: str = ""
    spec: dict[str, Any]
    data: DataAsked
    eval_data: DataAsked | None = None
    canary: bool = False
    """Are fixed prompts to be answered before and after?"""
    needs_bytes: int | None = Field(None, ge=0)
    """Memory that must be free now, by its estimate: it is to begin at once. None: unknown, or it is not."""


class AttemptOrder(WorkAsked):
    """`POST /mesh/v1/attempts`: train this, by order of whoever has the `ballot`."""

    ballot: BallotReport
    made: BallotReport | None = None
    """As in `AttemptKey`; None: under `ballot`."""
    attempt: AttemptNumber
    checkpoint: CheckpointRef | None = None
    """Where to go on from, if this node has none of its own."""
    open_data: bool = False
    """May its checkpoints go to other nodes although the mesh is open?"""
    checkpoint_replicas: int = Field(1, ge=0)
    record: dict[str, Any] | None = None
    """The job's, to be kept like a copy."""

    @property
    def key(self) -> AttemptKey:
        return AttemptKey(job=self.job, attempt=self.attempt, made=self.made or self.ballot)


class AttemptTold(AttemptKey):
    """How an attempt is: `told` is a `core.jobs.Told`."""

    told: dict[str, Any]


class AttemptsTold(Wire):
    """`POST /mesh/v1/attempts/told`: by the node that makes them."""

    attempts: list[AttemptTold]


class HeardReport(AttemptKey):
    """`fenced`: it was replaced, and must stop. `kept`: this end need not be told again."""

    fenced: bool = False
    kept: bool = False


class ToldAnswer(Wire):
    """What was told is on the coordinator's disk; one answer for each attempt."""

    attempts: list[HeardReport] = Field(default_factory=list)


class LinesAsked(Wire):
    """`POST /mesh/v1/attempts/events`: the events of a run with an id above `after`. `place`: as the last answer had
    it, so that the file need not be read from its beginning."""

    job: Ulid
    attempt: AttemptNumber
    after: int = Field(0, ge=0)
    place: list[Annotated[int, Field(ge=0, le=2**53)]] = Field(default_factory=list, max_length=3)


class LinesTold(Wire):
    """Some of them; `more`: there are others already."""

    ids: list[int]
    lines: list[str]
    place: list[int]
    more: bool = False


class LogAsked(Wire):
    """`POST /mesh/v1/attempts/log`: what follows byte `after` of the worker's log, or the last `lines` of it; 0:
    all that is kept."""

    job: Ulid
    attempt: AttemptNumber
    lines: int = Field(50, ge=0)
    after: int | None = Field(None, ge=0)


class LogTold(Wire):
    """`offset` is the byte after the last one that is told."""

    text: str
    offset: int


class CrashAsked(Wire):
    """`POST /mesh/v1/attempts/crash`: what is kept of the newest failure of this attempt."""

    job: Ulid
    attempt: AttemptNumber


class CrashTold(Wire):
    """None: nothing."""

    crash: CrashKept | None = None


class MemoryWanted(Wire):
    """Why a node is too small for a job, for good."""

    reason: str
    needs_bytes: int
    has_bytes: int


class EstimateTold(Wire):
    """`POST /mesh/v1/estimates`: a `core.jobs.Estimate`, or that the job is too large for this node."""

    estimate: dict[str, Any] | None = None
    too_large: MemoryWanted | None = None


class StopOrder(AttemptKey):
    """`POST /mesh/v1/attempts/stop`: end it after a checkpoint."""

    ballot: BallotReport
    why: str = ""


class RecordList(Wire):
    """Records of jobs: `core.jobs.Job`."""

    records: list[dict[str, Any]]


class RecordsKept(Wire):
    """`/records`: they are on the disk, but those of these ids, which this node can't read."""

    unread: list[str] = Field(default_factory=list)


class Record(Wire):
    """One of them."""

    record: dict[str, Any]


class JobKey(Wire):
    """`/find`: by name or id."""

    job: str


class JobDecision(JobKey):
    """`/decide`: what a person wants done with it."""

    decision: Literal["approve", "optimize", "cancel", "retry", "forget"]
