"""The two ends of an uplink: beats go up, acknowledgements come down, and only a round trip proves life."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tiermesh.core.messages import Stamp, Uplink
from tiermesh.types import SessionId

BEATS_TIMED = 8
"""Beats whose departure is remembered: more than stay unanswered before silence."""
SAMPLES = 9
"""Round trips whose median counts: up to four that queued behind a view do not move it."""


@dataclass(slots=True)
class Pulse:
    """The member's end. Times are monotonic seconds."""

    heard_at: float
    """When the coordinator last acknowledged a new beat."""
    seq: int = 0
    acked: int = 0
    sent_at: dict[int, float] = field(default_factory=dict)
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))

    def beat(self, now: float) -> int:
        """Number the next beat."""
        self.seq += 1
        self.sent_at[self.seq] = now
        if len(self.sent_at) > BEATS_TIMED:
            del self.sent_at[next(iter(self.sent_at))]
        return self.seq

    def acknowledge(self, now: float, seq: int) -> bool:
        """A beat came back; says whether that is news."""
        if not self.acked < seq <= self.seq:
            return False
        self.acked, self.heard_at = seq, now
        sent_at = self.sent_at.pop(seq, None)
        if sent_at is not None:
            self.samples.append(now - sent_at)
        return True

    @property
    def rtt_s(self) -> float | None:
        """Median of the last round trips."""
        return sorted(self.samples)[len(self.samples) // 2] if self.samples else None


@dataclass(slots=True)
class Link:
    """The coordinator's end, one for each member."""

    uplink: Uplink
    session: SessionId
    heard_at: float
    sent: Stamp
    """The state that the member holds, once all that was sent has arrived."""
    sent_at: float
