"""Copies that other nodes ask this one to keep: fetched, checked, pinned; older ones make room for newer ones."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.fetching import Fetcher, Holder
from tiermesh.errors import StaleOrder, TiermeshError, Unavailable
from tiermesh.protocol.artifacts import CopyOrder, CopyReport
from tiermesh.types import NodeId

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints of one job: the newest, and one before it in case that one can't be read."""
WAIT_S = 2.0
"""An answer waits so long for its copy, within a peer's patience: most copies then take one question."""
MAX_TAKING = 64
"""Copies on their way at once; who asks more often is to try again."""
_CHECKPOINT = re.compile(r"([0-9A-Z]{26})\.checkpoint\.(\d{7})\.(\d{12})\.([0-9a-f]{64})")


class CheckpointOwner(NamedTuple):
    """Who pins the copy of a checkpoint; sorts by age."""

    job: str
    attempt: int
    step: int
    artifact: str

    def __str__(self) -> str:
        return f"{self.job}.checkpoint.{self.attempt:07d}.{self.step:012d}.{self.artifact}"

    @classmethod
    def read(cls, owner: str) -> CheckpointOwner | None:
        """None for another kind of owner."""
        found = _CHECKPOINT.fullmatch(owner)
        return cls(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def owner_of(order: CopyOrder) -> str:
    """Who pins what an order brings."""
    if order.kind == "checkpoint":
        return str(CheckpointOwner(order.job, order.attempt, order.step, order.artifact))
    return f"{order.job}.{order.kind}"


def checkpoints_of(blobs: Blobs, job: str) -> list[CheckpointOwner]:
    """All that are kept here of a job, or on their way, the oldest first."""
    kept = (CheckpointOwner.read(owner) for owner in blobs.owners() if owner.startswith(f"{job}."))
    return sorted(owner for owner in kept if owner is not None)


def drop(blobs: Blobs, owner: str) -> None:
    """Nobody needs it any more: what no other job has is removed."""
    blobs.remove(blobs.unpin(owner))


def drop_older(blobs: Blobs, whole: CheckpointOwner) -> None:
    """`whole` is here: keep it, and as many before it as may be."""
    older = [owner for owner in checkpoints_of(blobs, whole.job) if owner < whole]
    for owner in older[: len(older) - KEPT + 1]:
        drop(blobs, str(owner))


class Taking:
    """What is being fetched by order of others. `close` at the end."""

    def __init__(
        self,
        blobs: Blobs,
        fetcher: Fetcher,
        *,
        holders: Callable[[Iterable[NodeId]], tuple[Holder, ...]],
        is_over: Callable[[str], bool | None],
    ) -> None:
        self._blobs = blobs
        self._fetcher = fetcher
        self._holders = holders
        self._is_over = is_over
        self._whole: set[tuple[str, str]] = set()
        """Owner and artifact, as far as known to be here."""
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def take(self, order: CopyOrder) -> CopyReport:
        """Begin, or say how far it is. Raises `StaleOrder`, `Unavailable`, and what `Fetcher` does."""
        self._check(order)
        key = (owner_of(order), order.artifact)
        if key in self._whole and order.artifact in self._blobs.pinned(key[0]):
            return CopyReport(state="held")
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= MAX_TAKING:
                raise Unavailable(f"{MAX_TAKING} other copies are on their way to this node")
            task = self._tasks[key] = asyncio.create_task(self._fetch(order, key[0]), name=f"copy {key[0]}")
            task.add_done_callback(lambda done: self._ended(key, done))
        await asyncio.wait((task,), timeout=WAIT_S)
        if not task.done():
            return CopyReport(state="coming", bytes=self._come(key[0]))
        if task.cancelled():
            raise StaleOrder(f"job {order.job} is over: nothing more of it is kept")
        task.result()
        return CopyReport(state="held")

    def forget(self, owner: str) -> None:
        """It was dropped."""
        self._whole = {key for key in self._whole if key[0] != owner}
        for key in [key for key in self._tasks if key[0] == owner]:
            self._tasks.pop(key).cancel()

    async def close(self) -> None:
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check(self, order: CopyOrder) -> None:
        if order.kind != "result" and self._is_over(order.job):
            raise StaleOrder(f"job {order.job} is over: nothing more of it is kept")
        kept = checkpoints_of(self._blobs, order.job)
        if order.kind == "checkpoint" and kept and order.attempt < kept[-1].attempt:
            raise StaleOrder(f"attempt {order.attempt} of job {order.job} was replaced by {kept[-1].attempt}")

    async def _fetch(self, order: CopyOrder, owner: str) -> None:
        try:
            await self._fetcher.artifact(order.artifact, self._holders(map(NodeId, order.holders)), owner=owner)
        except Unavailable as error:
            log.info("no copy of %s yet: %s", owner, error)
            self._blobs.unpin(owner)  # what came stays for as long as there is room: whoever asks again goes on with it
            raise
        except Exception as error:
            level = logging.INFO if isinstance(error, TiermeshError) else logging.ERROR
            log.log(level, "no copy of %s: %s", owner, error)
            drop(self._blobs, owner)
            raise
        if (whole := CheckpointOwner.read(owner)) is not None:
            drop_older(self._blobs, whole)

    def _ended(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
            if not task.cancelled() and task.exception() is None:
                self._whole.add(key)

    def _come(self, owner: str) -> int:
        """Bytes that are here of it."""
        found = ((digest, self._blobs.find(digest)) for digest in self._blobs.pinned(owner))
        return sum(self._blobs.received(digest) if path is None else path.stat().st_size for digest, path in found)
