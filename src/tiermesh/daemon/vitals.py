"""Looks at this machine now and then, remembers what it saw, and tells the mesh when it matters."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tiermesh.adapters import clock
from tiermesh.core.health import Alert, Vitals, assess, is_news, look_interval_s, state_of, told
from tiermesh.types import EngineInfo, Health

log = logging.getLogger(__name__)

HISTORY = 100
"""Looks kept: a quarter of an hour at work, an hour of quiet."""

HISTORY_S = 24 * 3600.0
"""And for no longer than this, however seldom the machine is awake."""


FRESH_S = 1.0
"""A look is as good as a new one for so long: a shorter mean of the processors' use says nothing."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen and what it means."""

    vitals: Vitals
    score: int
    alerts: tuple[Alert, ...]


class VitalsWatch:
    """Owner of this node's history. `on_health` is called with what all others should know.

    `examine` is called in a thread, one call at a time; whatever goes wrong in it is logged, and the watch goes on.
    """

    def __init__(
        self,
        examine: Callable[[], Vitals],
        *,
        engines: Callable[[], Iterable[EngineInfo]],
        latency_ms: Callable[[], float | None],
        busy: Callable[[], bool],
        on_health: Callable[[Health], None],
        now: Callable[[], float] = clock.now,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._examine = examine
        self._engines = engines
        self._latency_ms = latency_ms
        self._busy = busy
        self._on_health = on_health
        self._now = now
        self._wall = wall
        self._history: deque[Look] = deque(maxlen=HISTORY)
        self._last: Look | None = None
        self._looked_at = now()
        self._told = Health()
        self._told_at = now()
        self._worked_at = now()
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def history(self) -> tuple[Look, ...]:
        """The looks kept, oldest first."""
        while self._history and self._wall() - self._history[0].vitals.at > HISTORY_S:
            self._history.popleft()
        return tuple(self._history)

    def start(self) -> None:
        """Look now, and from then on as often as `core.health.look_interval_s` says."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop looking. May be called twice, and without `start`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    def worked(self) -> None:
        """This node is at work just now: look more often."""
        idle_s = self._now() - self._worked_at
        self._worked_at = self._now()
        if look_interval_s(busy=False, idle_s=idle_s) > look_interval_s(busy=True, idle_s=0):
            self._woken.set()

    async def look(self) -> Look:
        """Look now, for somebody who asks; what was just seen is told again. It is not kept: who asks often must not
        push out what was seen in time."""
        async with self._turn:
            last = self._last
            if last is None or self._now() - self._looked_at >= FRESH_S:
                last = await self._look()
            return last

    async def _look(self) -> Look:
        self._looked_at = self._now()
        seen = await asyncio.to_thread(self._examine)
        engines = tuple(self._engines())
        vitals = replace(
            seen,
            latency_ms=self._latency_ms(),
            engines_ready=sum(engine.state == "ready" for engine in engines),
            engines_down=sum(engine.state == "down" for engine in engines),
        )
        self._last = look = Look(vitals, *assess(vitals))
        self._tell(look)
        return look

    async def _run(self) -> None:
        while True:
            began_at = self._now()
            try:
                async with self._turn:
                    self._history.append(await self._look())
            except Exception:
                log.exception("this machine could not be looked at; trying again")
            await self._pause(began_at)

    async def _pause(self, began_at: float) -> None:
        """Until the next look is due, counted from the beginning of the last one; work that begins makes it due
        sooner."""
        while (left_s := began_at + self._interval_s() - self._now()) > 0:
            self._woken.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._woken.wait()
            except TimeoutError:
                return

    def _interval_s(self) -> float:
        return look_interval_s(busy=self._busy(), idle_s=self._now() - self._worked_at)

    def _tell(self, look: Look) -> None:
        health = told(look.score, look.alerts, bool(look.vitals.on_battery))
        now = self._now()
        if not is_news(self._told, health, now - self._told_at):
            return
        if self._told.score is not None or look.alerts:
            self._log(look)
        self._told, self._told_at = health, now
        self._on_health(health)

    def _log(self, look: Look) -> None:
        """A change of state is news for a person, too; a few points are not."""
        before, state = state_of(self._told.score), state_of(look.score)
        if before != state or set(self._told.alerts) != set(told(look.score, look.alerts).alerts):
            reasons = "; ".join(alert.message for alert in look.alerts)
            log.log(
                logging.WARNING if look.alerts else logging.INFO,
                "this node is %s (%d of 100)%s",
                state,
                look.score,
                f": {reasons}" if reasons else "",
            )
