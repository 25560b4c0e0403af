"""The two ends of an uplink: beats go up, acknowledgements come down, and only a round trip proves life."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiermesh.core.messages import Stamp, Uplink
from tiermesh.types import SessionId

BEATS_TIMED = 8
"""Beats whose departure is remembered: more than stay unanswered before silence."""
SMOOTHING = 0.2
"""Weight of a new round trip: one slow packet moves the figure by a fifth."""


@dataclass(slots=True)
class Pulse:
    """The member's end. Times are monotonic seconds."""

    heard_at: float
    """When the coordinator last acknowledged a new beat."""
    seq: int = 0
    acked: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)

    def beat(self, now: float) -> int:
        """Number the next beat."""
        self.seq += 1
        self.sent_at[self.seq] = now
        if len(self.sent_at) > BEATS_TIMED:
            del self.sent_at[next(iter(self.sent_at))]
        return self.seq

    def acknowledge(self, now: float, seq: int) -> float | None:
        """A beat came back; its round trip, or None when that can't be told. Old news are none."""
        if not self.acked < seq <= self.seq:
            return None
        self.acked, self.heard_at = seq, now
        sent_at = self.sent_at.pop(seq, None)
        return None if sent_at is None else now - sent_at


@dataclass(slots=True)
class Link:
    """The coordinator's end, one for each member."""

    uplink: Uplink
    session: SessionId
    heard_at: float
    sent: Stamp
    """The state that the member holds, once all that was sent has arrived."""
    sent_at: float


def smoothed(old: float | None, sample: float) -> float:
    """A round trip averaged over the last few."""
    return sample if old is None else old + SMOOTHING * (sample - old)
