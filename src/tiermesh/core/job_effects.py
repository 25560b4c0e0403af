"""What goes into `core.foreman.Foreman` besides records, and what it asks of the shell around it.

Effects are carried out in the order in which they were returned, across calls: whatever follows a `Save`, from the
same call or a later one, waits until that record is on this node's disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiermesh.core.attempts import Attempt, AttemptId, Told
from tiermesh.core.jobs import Job, JobId
from tiermesh.errors import TiermeshError
from tiermesh.types import Ballot, NodeId


@dataclass(frozen=True, slots=True)
class Save:
    """Write the record durably before anything that follows."""

    job: Job


@dataclass(frozen=True, slots=True)
class Copy:
    """Send the record to `node`, which joins it to its own and saves; then `Foreman.copied` with its stamp. May be
    lost: it is asked for again. A node takes it from the coordinator that it follows, and from nobody else."""

    job: Job
    node: NodeId


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The submission is safe: answer whoever waits for it."""

    job: Job


@dataclass(frozen=True, slots=True)
class Decline:
    """The submission is not taken: raise this to whoever waits for it."""

    id: JobId
    error: TiermeshError


@dataclass(frozen=True, slots=True)
class AskEstimate:
    """Ask `node` what the job will take; then `Foreman.estimated`."""

    job: Job
    node: NodeId


@dataclass(frozen=True, slots=True)
class Order:
    """Tell the attempt's node to train, or to go on; then `Foreman.order_answered`. The same order twice is one
    attempt. The node keeps `job` like a copy. May be lost: it is given again."""

    job: Job
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell `node` to end the attempt after a checkpoint. May be lost."""

    job: JobId
    attempt: AttemptId
    node: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Collect:
    """Fetch all records that `node` has, once they are on its disk; then `Foreman.learnt` with `whole`. May be lost: it
    is asked for again. A node answers the coordinator that it follows, and nobody else: what another one has it keep
    afterwards would not be known to this one."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Serve:
    """The job has a result, or another one than before: serve it under its name. Also after a takeover."""

    job: Job


@dataclass(frozen=True, slots=True)
class Tell:
    """The record changed: tell whoever watches."""

    job: Job


@dataclass(frozen=True, slots=True)
class Fault:
    """Nothing can be decided about this job as its record is: log why. It is left alone until its record changes."""

    job: Job
    error: Exception


JobEffect = Save | Copy | Acknowledge | Decline | AskEstimate | Order | Stop | Collect | Serve | Tell | Fault


@dataclass(frozen=True, slots=True)
class Shortage:
    """Of memory, on one node, whatever else it does: the job needs this much there at least, and the node has that."""

    needs_bytes: int
    has_bytes: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node won't. `for_good`: no node ever will, for the job itself is wrong; else this node, now, or for as long as
    it is as small as `shortage` says."""

    reason: str
    failure: str | None = None
    for_good: bool = False
    shortage: Shortage | None = None


@dataclass(frozen=True, slots=True)
class AttemptTold:
    """What a node says of an attempt: at every change, and once a second. An end is said until it is kept."""

    job: JobId
    number: int
    ballot: Ballot
    told: Told


@dataclass(frozen=True, slots=True)
class Heard:
    """The answer to `AttemptTold`, to be given once `effects` are carried out.

    `fenced`: stop, this attempt was replaced or the job is over. `kept`: an end that was told is safe (on two nodes,
    where there are two), and need not be told again.
    """

    effects: list[JobEffect]
    fenced: bool = False
    kept: bool = False
