"""The queue before the disk: effects of `core.foreman`, carried out in order, none before the records that were to be
saved ahead of it are durable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tiermesh.adapters.store import Store
from tiermesh.core.job_effects import JobEffect, Save
from tiermesh.errors import StateUnwritable

log = logging.getLogger(__name__)

UNWRITTEN_S = 1.0
"""Between two tries to write what the disk would not take."""
CLOSE_S = 10.0
"""For what is on its way when this node ends."""


class JobQueue:
    """What has gathered while the disk was busy is saved in one go. `carry_out` hears of all effects but `Save`.

    What can't be written is tried again for as long as it takes; `on_unwritten` hears of it, each time: whoever waits
    for an answer gets none that promises anything.
    """

    def __init__(
        self,
        store: Store,
        carry_out: Callable[[JobEffect], None],
        on_unwritten: Callable[[StateUnwritable], None],
    ) -> None:
        self._store = store
        self._carry_out = carry_out
        self._on_unwritten = on_unwritten
        self._waiting: list[JobEffect | asyncio.Future[None]] = []
        """A future: somebody wants to know when all before it is done."""
        self._writing: asyncio.Task[None] | None = None
        self._is_told = False
        """Was it said that the disk takes nothing?"""

    def put(self, effects: list[JobEffect]) -> None:
        """Behind all others."""
        self._waiting += effects
        self._write()

    async def settled(self) -> None:
        """Until all that was put here is on disk and under way. Raises `StateUnwritable`."""
        if not self._waiting and self._writing is None:
            return
        here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(here)
        self._write()
        await here

    async def close(self) -> None:
        """What was decided is on disk when it returns, if the disk takes it."""
        if self._writing is not None:
            await asyncio.wait((self._writing,), timeout=CLOSE_S)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    def _write(self) -> None:
        if self._writing is None and self._waiting:
            self._writing = asyncio.create_task(self._run(), name="jobs")

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                newest = {each.job.id: each.job for each in batch if isinstance(each, Save)}
                try:
                    if newest:
                        await self._store.save_records(newest.values())
                except StateUnwritable as error:
                    self._waiting = [*self._left(batch, error), *self._waiting]
                    await asyncio.sleep(UNWRITTEN_S)
                    continue
                if newest and self._is_told:
                    self._is_told = False
                    log.info("records of jobs are saved again")
                for each in batch:
                    self._do(each)
        finally:
            self._writing = None

    def _left(
        self, batch: list[JobEffect | asyncio.Future[None]], error: StateUnwritable
    ) -> list[JobEffect | asyncio.Future[None]]:
        """What is to be tried again."""
        log.log(
            logging.DEBUG if self._is_told else logging.ERROR,
            "records of jobs can't be saved, which is tried again: %s",
            error,
        )
        self._is_told = True
        self._on_unwritten(error)
        left: list[JobEffect | asyncio.Future[None]] = []
        for each in batch:
            if not isinstance(each, asyncio.Future):
                left.append(each)
            elif not each.done():
                each.set_exception(error)
        return left

    def _do(self, each: JobEffect | asyncio.Future[None]) -> None:
        if isinstance(each, asyncio.Future):
            if not each.done():
                each.set_result(None)
        elif not isinstance(each, Save):
            try:
                self._carry_out(each)
            except Exception:  # the others wait behind it
                log.exception("%s could not be carried out", type(each).__name__)
