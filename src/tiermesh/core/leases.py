"""When the node of an attempt was heard last, and what it was told: what a coordinator remembers of attempts."""

from __future__ import annotations

from dataclasses import dataclass

from tiermesh.core.attempts import AttemptId
from tiermesh.types import SessionId


@dataclass(slots=True)
class Lease:
    """Of one job's current attempt. Times are monotonic."""

    attempt: AttemptId
    heard_at: float
    session: SessionId | None
    """The run of the node's daemon that was ordered."""
    ordered_at: float
    seq: int
    """What had been told when it was ordered: an older stop is not a new one."""
    stop_sent_at: float | None = None
    stop_since: float | None = None


@dataclass(frozen=True, slots=True)
class Objection:
    """A node said no to a job; it is asked again at `until`."""

    reason: str
    until: float
    wait_s: float
