"""A job as its record: what was asked for, what was decided, what became of each attempt; and the join of two.

Theory of operation
-------------------
The coordinator writes a job's record, other nodes keep copies. In a partition there are two coordinators and both
write. So a record consists of parts of which each joins with its like in one way only, whatever the order and however
often (a semilattice), and two nodes that have heard the same have the same record:

    asked          the request; of two (a submission that reached both halves) the earlier
    course         where the job is; an end beats what is no end, completed beats cancelled beats failed beats refused,
                   and of two that are not ends that of the later stamp counts
    attempts       the union by (number, ballot); what a node said last of one counts, an end before all
    happened       the union
    cancel_asked, forgotten, approved, holders of data    once said, said for ever

One thing follows from another: a job is `completed` exactly when one of its attempts counts, and its result is the
first of those by number and ballot. After the end nothing changes, but that another half may bring a better end or an
earlier result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import NewType

from tiermesh.core.attempts import Attempt, AttemptId, AttemptStanding, Checkpoint, canonical, join_all
from tiermesh.core.codec import decode_value, encode_value
from tiermesh.core.evaluation import Gates
from tiermesh.core.job_states import ENDS, OVER, TRANSITIONS, JobEvent
from tiermesh.errors import NotPossibleNow
from tiermesh.types import NO_BALLOT, Ballot, JobState, NodeId

JobId = NewType("JobId", str)
"""A ULID that the submitter made: the job's idempotency key."""
Stamp = tuple[int, Ballot]
"""Of a change: one more than that of the change before, and who made it. Unique, for a ballot has one holder."""
NO_STAMP: Stamp = (0, NO_BALLOT)
HAPPENED_LIMIT = 500
"""Events kept of a job, the newest: a hundred attempts with five each."""
TEXT_LIMIT = 2000
"""Characters of a reason: a sentence and its advice."""
TICK_S = 1e-6
"""Between two events of a job that fall on one moment. A float keeps it apart until the year 2242."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file by its content; `name` is what its owner calls it, and says its format."""

    sha256: str
    name: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will take on `node`, each with its interval. None is unknown, and so is money without a price."""

    node: NodeId
    memory_bytes: int
    memory_bytes_low: int = 0
    memory_bytes_high: int = 0
    seconds: float = 0.0
    seconds_low: float = 0.0
    seconds_high: float = 0.0
    usd: float | None = None
    usd_low: float | None = None
    usd_high: float | None = None
    device: str = ""
    usd_per_second: float | None = None
    steps: int = 0
    effective_batch: int = 0
    basis: str = ""
    """What it was reckoned from, for a person."""


@dataclass(frozen=True, slots=True, order=True)
class Happened:
    """One event of a job. `at` is Unix seconds; `kind` is a `JobEvent`, or `submit`, `data`, `order`, `gate`,
    `estimate`, `result`, ..."""

    at: float
    kind: str
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request, as it was accepted."""

    name: str
    spec: Mapping[str, object]
    """A checked training spec as plain JSON; its paths are names of datasets."""
    data: Dataset
    eval_data: Dataset | None = None
    priority: int = 0
    """Higher goes first."""
    submitter: str = ""
    """Among whom the mesh is shared fairly: the id of the node at which somebody sits, or the address of whoever asked
    from elsewhere; behind a blank which key was shown, if one was."""
    open_data: bool = False
    """May data and checkpoints go to other nodes of an open mesh than the one that trains?"""
    gates: Gates = field(default_factory=Gates)
    """What the result must reach."""
    approve: bool = False
    """Has the submitter agreed beforehand to what a person would be asked about?"""
    max_usd: float | None = None
    """The submitter's own limit."""
    submitted_at: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where the job is, as the coordinator of `stamp` decided."""

    stamp: Stamp = NO_STAMP
    state: JobState = "estimating"
    reason: str = ""
    """Why it waits, or how it ended, for a person."""
    failure: str | None = None
    """The kind of failure, where there is one."""
    spec: Mapping[str, object] | None = None
    """What the next attempt is to train; None: as asked for."""
    edition: int = 0
    """How often the gate was to judge another spec."""
    retry: int = 0
    """How many retries the next attempt will have been; higher than `Job.retries` when it is one itself."""
    estimate: Estimate | None = None
    ended_at: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A record. Replaced whole."""

    id: JobId
    asked: Asked
    course: Course = Course()
    attempts: tuple[Attempt, ...] = ()
    """By number, then ballot."""
    happened: tuple[Happened, ...] = ()
    """By time."""
    holders: tuple[NodeId, ...] = ()
    """Nodes that are known to have the data, or had it."""
    approved: int = -1
    """The highest edition of the spec that a person has agreed to."""
    cancel_asked: bool = False
    forgotten: bool = False
    """Over, and nobody is to be told of it any more. The record stays, so that no copy of it brings the job back."""
    stamp: Stamp = NO_STAMP
    """Of the last change: whoever holds this stamp, or a higher one, has heard of everything before."""

    @property
    def name(self) -> str:
        return self.asked.name

    @property
    def data(self) -> Dataset:
        return self.asked.data

    @property
    def eval_data(self) -> Dataset | None:
        return self.asked.eval_data

    @property
    def spec(self) -> Mapping[str, object]:
        """What the next attempt is to train."""
        return self.asked.spec if self.course.spec is None else self.course.spec

    @property
    def state(self) -> JobState:
        return self.course.state

    @property
    def reason(self) -> str:
        return self.course.reason

    @property
    def failure(self) -> str | None:
        return self.course.failure

    @property
    def estimate(self) -> Estimate | None:
        return self.course.estimate

    @property
    def memory_bytes(self) -> int | None:
        """What the next attempt takes, or the one at work; None where nobody knows, or only of another spec."""
        return None if self.estimate is None or self.state == "estimating" else self.estimate.memory_bytes

    @property
    def submitted_at(self) -> float:
        return self.asked.submitted_at

    @property
    def started_at(self) -> float | None:
        """Unix seconds of the first order."""
        return min((attempt.ordered_at for attempt in self.attempts), default=None)

    @property
    def ended_at(self) -> float | None:
        return self.course.ended_at

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def retries(self) -> int:
        return max((attempt.retries for attempt in self.attempts), default=0)

    @property
    def result(self) -> Attempt | None:
        """The attempt whose result is the job's, and is served under its name."""
        return next((attempt for attempt in self.attempts if attempt.counts), None)

    @property
    def current(self) -> Attempt | None:
        """The newest attempt that is neither at its end nor replaced."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.is_live), None)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The one furthest on that any attempt told of."""
        told = [each.told.checkpoint for each in self.attempts if each.told is not None and each.told.checkpoint]
        return max(told, key=lambda each: each.step, default=None)

    def attempt(self, attempt: AttemptId) -> Attempt | None:
        return next((each for each in self.attempts if each.id == attempt), None)

    def state_of(self, attempt: Attempt) -> AttemptStanding:
        """How one of its attempts stands."""
        if attempt.counts:
            return "completed" if attempt is self.result else "superseded"
        if attempt.is_end:
            return "failed"
        if attempt.fenced:
            return "superseded"
        if self.is_over:
            return "stopped"
        return "ordered" if attempt.told is None else attempt.told.state

    def after(self, event: JobEvent, by: Ballot, at: float, *, reason: str = "", failure: str | None = None) -> Job:
        """The job after `event`, as decided under the ballot `by`. Raises `NotPossibleNow` when the table lacks it."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise NotPossibleNow(f"job {self.name} is {self.state}: nothing is left to {event}")
        changed = self.touched(by)
        course = replace(
            self.course,
            stamp=changed.stamp,
            state=state,
            reason=clip(reason),
            failure=failure if state in OVER else None,
            ended_at=at if state in OVER else None,
        )
        return replace(changed, course=course).noting(at, event, reason)

    def touched(self, by: Ballot) -> Job:
        """With the stamp of one change more."""
        return replace(self, stamp=(self.stamp[0] + 1, by))

    def noting(self, at: float, kind: str, text: str = "") -> Job:
        """With one event more. It is after all that are known, whatever the clocks of earlier coordinators said: they
        are what it followed from."""
        after = self.happened[-1].at + TICK_S if self.happened else at
        return replace(self, happened=_events(self.happened, (Happened(max(at, after), kind, clip(text)),)))

    def with_attempt(self, attempt: Attempt) -> Job:
        """With this attempt, new or as it is now."""
        return replace(self, attempts=join_all(self.attempts, (attempt,)))

    def is_same_request(self, other: Job) -> bool:
        """Was the same thing asked for? A name is a label."""
        mine, theirs = self.asked, other.asked
        return (mine.spec, mine.data.sha256, mine.eval_data, mine.gates) == (
            theirs.spec,
            theirs.data.sha256,
            theirs.eval_data,
            theirs.gates,
        )


def join(one: Job, other: Job) -> Job:
    """What both records of a job know: commutative, associative, idempotent."""
    assert one.id == other.id, "records of one job"
    if one is other or one == other:
        return one
    return Job(
        id=one.id,
        asked=min(one.asked, other.asked, key=lambda each: (each.submitted_at, canonical(each))),
        course=_course(one.course, other.course),
        attempts=join_all(one.attempts, other.attempts),
        happened=_events(one.happened, other.happened),
        holders=tuple(sorted({*one.holders, *other.holders})),
        approved=max(one.approved, other.approved),
        cancel_asked=one.cancel_asked or other.cancel_asked,
        forgotten=one.forgotten or other.forgotten,
        stamp=max(one.stamp, other.stamp),
    )


def job_to_dict(job: Job) -> dict[str, object]:
    """A record as a JSON object."""
    encoded = encode_value(job)
    assert isinstance(encoded, dict)
    return encoded


def job_from_dict(data: object) -> Job:
    """The inverse of `job_to_dict`. Raises ValueError."""
    job: Job = decode_value(Job, data)
    return job


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """`wanted`, with a number after it when another job has that name."""
    names = set(taken)
    numbered = (f"{wanted}-{number}" for number in range(2, len(names) + 3))
    return wanted if wanted not in names else next(name for name in numbered if name not in names)


def clip(text: str) -> str:
    """No longer than a sentence with its advice."""
    return text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT - 1]}…"


def _course(one: Course, other: Course) -> Course:
    mine, theirs = ((ENDS.get(each.state, 0), each.stamp) for each in (one, other))
    if mine == theirs:
        return one if one == other else max(one, other, key=canonical)
    return one if mine > theirs else other


def _events(*parts: tuple[Happened, ...]) -> tuple[Happened, ...]:
    """The newest; so that what is left does not depend on the order of joins."""
    every: frozenset[Happened] = reduce(lambda known, part: known | frozenset(part), parts, frozenset())
    return tuple(sorted(every)[-HAPPENED_LIMIT:])
