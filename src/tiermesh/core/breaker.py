"""One circuit breaker: whether a candidate that has failed is worth another request yet. Pure; the caller brings time.

    state       event                                     next
    closed      failures in a row, or too high a rate     open, for `open_s`
    open        its time has passed                       half open
    half open   a success                                 closed
    half open   a failure                                 open, twice as long as before, at most `open_most_s`
    any         a failure with Retry-After                open for so long, then what it was

A slow first token is a failure. Half open, one request at a time goes through, as a probe; whatever else is there is
asked meanwhile. Outcomes that come in while it is open belong to requests sent before, and change nothing: a burst
that fails together opens it once, and a straggler's success does not close what has just been opened.

Retry-After is the word of somebody who lives and is busy, so it counts as neither failure nor success.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]

PROBE_LOOK_S = 1.0
"""Come back so long after, while a probe is running: nobody knows when it ends, and most answers begin within it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """When it opens and for how long; defaults as in the policy document, which gives the reasons."""

    failures: int = 3
    failure_rate: float = 0.5
    rate_window: int = 20
    rate_least: int = 10
    slow_first_token_s: float = 60.0
    open_s: float = 10.0
    open_most_s: float = 300.0


class Breaker:
    """Of one candidate. `now` is monotonic, in seconds, and never goes back.

    Every request that `allows` lets through is told by `started`, then by exactly one of `succeeded`, `failed` and
    `abandoned`.
    """

    __slots__ = ("_in_a_row", "_open_for_s", "_open_until", "_outcomes", "_paused_until", "_probing", "_rule")

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._outcomes: deque[bool] = deque(maxlen=rule.rate_window)
        self._in_a_row = 0
        self._open_for_s = 0.0
        self._open_until: float | None = None
        self._paused_until: float | None = None
        self._probing = False

    def state(self, now: float) -> BreakerState:
        """What holds at `now`."""
        if self._open_until is None and self._paused_until is None:  # as nearly always
            return "closed"
        until = self.opens_until
        if until is not None and now < until:
            return "open"
        return "closed" if self._open_until is None else "half_open"

    @property
    def opens_until(self) -> float | None:
        """When it lets somebody through again, which may be past; None: nothing is against it."""
        if self._open_until is None or self._paused_until is None:
            return self._paused_until if self._open_until is None else self._open_until
        return max(self._open_until, self._paused_until)

    def allows(self, now: float) -> bool:
        """May a request go there now?"""
        return self.retry_after_s(now) == 0

    def retry_after_s(self, now: float) -> float:
        """How long it is not worth asking; 0 is now."""
        until = self.opens_until
        if until is not None and now < until:
            return until - now
        return PROBE_LOOK_S if self._probing else 0.0

    def started(self, now: float) -> None:
        """A request goes there; the first one after it was open is the probe."""
        self._probing = self._probing or self.state(now) == "half_open"

    def succeeded(self, now: float, first_token_s: float | None = None) -> None:
        """It answered. `first_token_s` is None where it tells nothing of speed: not streamed, or a model was loaded."""
        if first_token_s is not None and first_token_s > self._rule.slow_first_token_s:
            self.failed(now)
            return
        match self.state(now):
            case "closed":
                self._in_a_row = 0
                self._outcomes.append(True)
            case "half_open":
                self._close()
            case "open":
                pass

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """It did not answer, by its own fault; or it said when to come back."""
        state = self.state(now)
        self._probing = False
        if retry_after_s is not None:
            wait_s = min(max(retry_after_s, 0.0), self._rule.open_most_s)
            self._paused_until = max(now + wait_s, self._paused_until or now)
            return
        match state:
            case "closed":
                self._in_a_row += 1
                self._outcomes.append(False)
                if self._in_a_row >= self._rule.failures or self._fails_too_often():
                    self._open(now, self._rule.open_s)
            case "half_open":
                self._open(now, min(2 * self._open_for_s, self._rule.open_most_s))
            case "open":
                pass

    def abandoned(self) -> None:
        """A request ended without a verdict on the candidate: its caller left, or was itself to blame."""
        self._probing = False

    def _fails_too_often(self) -> bool:
        count = len(self._outcomes)
        return count >= self._rule.rate_least and self._outcomes.count(False) >= self._rule.failure_rate * count

    def _open(self, now: float, for_s: float) -> None:
        self._open_for_s = for_s
        self._open_until = now + for_s

    def _close(self) -> None:
        """As new: what was before the probe says nothing about what comes after it."""
        self._outcomes.clear()
        self._in_a_row = 0
        self._open_until = self._paused_until = None
        self._probing = False
