"""How long one candidate is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from tiermesh.errors import DeadlineExceeded, EngineFailed, TiermeshError
from tiermesh.types import NodeId

ON_ITS_WAY_S = 0.5
"""What a node said before it died may come this long after the news of it. Later, it speaks for the node."""

TOO_LATE = "no complete answer within the time limit of the request"


class Attempt:
    """One try at one candidate; `with attempt:` bounds what is awaited inside, by one task at a time.

    Raises `DeadlineExceeded` when the request's own time is up, and `EngineFailed` when the node went down, or when
    `patience_s` has passed in silence and `gives_up`, told the seconds of silence, says so. A node that goes down ends
    the wait for it at once, or after `grace_s` once it spoke: a view can be wrong.

    One timer serves all waits of an attempt and is moved rarely: a stream waits thousands of times.
    """

    __slots__ = (
        "_cancelling",
        "_deadline",
        "_down_at",
        "_ends",
        "_grace_s",
        "_loop",
        "_since",
        "_task",
        "_timer",
        "_timer_at",
        "_why",
        "begun",
        "gives_up",
        "node",
        "patience_s",
    )

    def __init__(self, node: NodeId, *, deadline: float, grace_s: float) -> None:
        self.node = node
        self.begun = False
        self.patience_s: float | None = None
        self.gives_up: Callable[[float], bool] = _always
        self._deadline = deadline
        self._grace_s = grace_s
        self._down_at: float | None = None
        self._since = self._ends = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._why: TiermeshError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # kept here: uvloop's handle of what is due at once can't tell
        self._loop = asyncio.get_running_loop()

    def node_went_down(self) -> None:
        """The view says that the candidate's node is down."""
        if self._down_at is None:
            self._down_at = self._loop.time()
            if self._task is not None:
                self._ends = min(self._ends, self._down_at + self._grace())
                self._watch()

    def close(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> None:
        self._since = self._loop.time()
        if self._since >= self._deadline:  # whoever always has something to say is never waited for
            raise DeadlineExceeded(TOO_LATE)
        task = self._task = asyncio.current_task()
        assert task is not None, "waits belong to a task"
        self._cancelling = task.cancelling()
        self._ends = self._next_look(self._since)
        if self._down_at is not None:
            self._ends = min(self._ends, self._since + self._grace())
        self._watch()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        why, self._why = self._why, None
        assert task is not None, "left as often as entered"
        if why is not None and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise why from None
        if self._down_at is not None and self._loop.time() - self._down_at > ON_ITS_WAY_S:
            self._down_at = None

    def _watch(self) -> None:
        if self._timer is not None:
            if not self._timer.cancelled() and self._timer_at <= self._ends:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(self._ends, self._look), self._ends

    def _look(self) -> None:
        self._timer = None
        if self._task is None or self._why is not None:
            return
        now = self._loop.time()
        if now >= self._ends:
            self._why = self._verdict(now)
            if self._why is not None:
                self._task.cancel()
                return
            self._ends = self._next_look(now)
        self._watch()

    def _verdict(self, now: float) -> TiermeshError | None:
        if self._down_at is not None:
            return EngineFailed("the node went down")
        if now >= self._deadline:
            return DeadlineExceeded(TOO_LATE)
        silent_s = now - self._since
        return EngineFailed(f"silent for {silent_s:.3g} s") if self.gives_up(silent_s) else None

    def _next_look(self, now: float) -> float:
        return self._deadline if self.patience_s is None else min(self._deadline, now + self.patience_s)

    def _grace(self) -> float:
        return self._grace_s if self.begun else 0.0


def _always(silent_s: float) -> bool:
    return True
