"""One supervised worker process: started when it is needed, ready when it says so, started again when it dies.

| state | what happens | next |
|---|---|---|
| stopped | nothing; the first `ready()` starts it | starting |
| starting | spawned, and asked until it is ready | ready; waiting when it dies or is not ready in time |
| ready | serves | waiting when it dies |
| waiting | backs off: 0.25 s, twice as long after each failed start | starting; stopped after 5 of them in a row |
| closed | for good | |
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tiermesh.adapters.process import Process, ProcessRecord
from tiermesh.errors import EngineFailed, Unavailable

log = logging.getLogger(__name__)

WorkerState = Literal["stopped", "starting", "ready", "waiting", "closed"]

BACKOFF_FIRST_S = 0.25
"""After a worker that had been ready the next one starts nearly at once: what killed it is not about the start, and
loading is pause enough."""
BACKOFF_MAX_S = 30.0
"""A worker that can't start costs at most its start-up this often."""
MAX_FAILED_STARTS = 5
"""Then it stays down until somebody asks for it again; what is broken will not mend itself."""
POLL_S = 0.05
"""How often a starting worker is asked whether it is ready; a question costs under a millisecond."""
PATIENCE_S = 1.0
"""A request waits this long for a backoff to end; with a longer one it is sent elsewhere at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What to run, and how to know that it is ready.

    `argv` is a function where each start may need other arguments than the one before.
    `ready_limit_s` has room for gigabytes from a slow disk; past it the worker is killed and started again.
    """

    name: str
    argv: Sequence[str] | Callable[[], Sequence[str]]
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_limit_s: float = 300.0
    grace_s: float = 2.0
    """Between SIGTERM and SIGKILL."""


class Worker:
    """Owns one process. `on_change` is called at each change of `state`; `on_record` with each process's identity."""

    def __init__(
        self, spec: WorkerSpec, *, on_change: Callable[[], None], on_record: Callable[[ProcessRecord | None], None]
    ) -> None:
        self.state: WorkerState = "stopped"
        self.starts = 0
        """How often it has been spawned."""
        self._spec = spec
        self._on_change = on_change
        self._on_record = on_record
        self._changed = asyncio.Condition()
        self._life: asyncio.Task[None] | None = None
        self._failure = ""
        self._deaths = 0
        self._next_start = 0.0

    @property
    def failure(self) -> str:
        """Why it is not ready, for a person; empty while all is well."""
        return self._failure

    async def ready(self) -> None:
        """Start it unless it runs, and wait until it is ready.

        Raises `EngineFailed` when it dies meanwhile and `Unavailable` when it died too often to wait for.
        """
        async with self._changed:
            deaths = self._deaths
            while self.state != "ready":
                self.begin()  # also when it is given up only now, after a wait for its backoff
                if self._deaths != deaths:
                    raise EngineFailed(self._failure)
                if self.state == "closed":
                    raise EngineFailed(f"{self._spec.name} is shut down")
                if self.state == "waiting":
                    self._refuse_long_wait()
                await self._changed.wait()

    async def wait_until_lost(self, limit_s: float) -> None:
        """Wait until it is no longer ready, at most for `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s), self._changed:
                await self._changed.wait_for(lambda: self.state != "ready")

    def begin(self) -> None:
        """Start it unless it runs; returns at once."""
        if self.state == "stopped":
            self.state = "starting"
            self._life = asyncio.create_task(self._live(), name=f"worker {self._spec.name}")

    async def close(self) -> None:
        """End it and wait. May be called twice."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            self._life = None
        await self._become("closed")

    def _refuse_long_wait(self) -> None:
        left = self._next_start - time.monotonic()
        if left > PATIENCE_S:
            raise Unavailable(f"{self._failure}; started again in {left:.0f} s", retry_after_s=left)

    async def _live(self) -> None:
        """A mistake of our own must not leave those who wait for this worker waiting for ever."""
        try:
            await self._run_again_and_again()
        except Exception as error:
            log.exception("%s is given up", self._spec.name)
            self._failure = f"{self._spec.name} can't be run: {type(error).__name__}: {error}"
            self._deaths += 1
            await self._become("stopped")

    async def _run_again_and_again(self) -> None:
        backoff_s, failed_starts = BACKOFF_FIRST_S, 0
        while failed_starts < MAX_FAILED_STARTS:
            if await self._run_once():
                failed_starts, backoff_s = 0, BACKOFF_FIRST_S
            else:
                failed_starts += 1
            self._next_start = time.monotonic() + backoff_s
            self._deaths += 1
            log.warning("%s; starting it again in %.2g s", self._failure, backoff_s)
            await self._become("waiting")
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        log.error("%s; it is left alone until it is needed, after %d starts in vain", self._failure, failed_starts)
        await self._become("stopped")

    async def _run_once(self) -> bool:
        """From spawn to death; gives whether it was ever ready."""
        await self._become("starting")
        argv = self._spec.argv
        try:
            process = await Process.spawn(argv() if callable(argv) else argv, log=self._spec.log, env=self._spec.env)
        except OSError as error:
            self._failure = f"{self._spec.name} can't be started: {error}"
            return False
        self.starts += 1
        self._on_record(process.record)
        try:
            return await self._watch(process)
        finally:
            await process.terminate(self._spec.grace_s)
            self._on_record(None)

    async def _watch(self, process: Process) -> bool:
        death = asyncio.ensure_future(process.wait())
        readiness = asyncio.ensure_future(self._until_ready())
        try:
            await asyncio.wait((death, readiness), return_when=asyncio.FIRST_COMPLETED)
            if not death.done() and readiness.exception() is None:
                self._failure = ""
                await self._become("ready")
                await death
                self._failure = f"{self._spec.name} died ({_how(process)})"
                return True
            self._failure = (
                f"{self._spec.name} died while it started ({_how(process)})"
                if death.done()
                else f"{self._spec.name} was not ready within {self._spec.ready_limit_s:.0f} s"
            )
            return False
        finally:
            for task in (death, readiness):
                task.cancel()
            await asyncio.gather(death, readiness, return_exceptions=True)

    async def _until_ready(self) -> None:
        async with asyncio.timeout(self._spec.ready_limit_s):
            while True:
                if await self._spec.is_ready():
                    return
                await asyncio.sleep(POLL_S)

    async def _become(self, state: WorkerState) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()
        self._on_change()


def _how(process: Process) -> str:
    code = process.returncode
    if code == -signal.SIGKILL:  # whoever is killed so has no last words about it
        return "signal 9: somebody killed it, or the system did for lack of memory"
    how = f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
    return f"{how}: {process.last_words}" if process.last_words else how
