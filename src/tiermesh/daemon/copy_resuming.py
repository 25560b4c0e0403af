"""A run goes on from a checkpoint that was copied from another node, and does without one that is spoiled or gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from tiermesh.adapters.fetching import Fetcher, Holder
from tiermesh.adapters.run_copy import has_checkpoints, lay_out_run
from tiermesh.core.attempts import Checkpoint
from tiermesh.core.replicas import copy_order
from tiermesh.daemon.copy_taking import checkpoints_of
from tiermesh.errors import BodyTooLarge, DataUnusable, JobRefused, Unavailable
from tiermesh.protocol.artifacts import Manifest
from tiermesh.protocol.run_folder import RunFolder
from tiermesh.types import NodeId, View

log = logging.getLogger(__name__)

GIVE_UP_S = 120.0
"""A checkpoint all of whose holders have been down for so long is done without: a machine restarts sooner."""
RESUME = ".resume"
"""End of the name of who pins a checkpoint until the run has it."""


class Resuming:
    """Of all jobs of one node."""

    def __init__(
        self,
        me: NodeId,
        fetcher: Fetcher,
        *,
        view: Callable[[], View],
        holders: Callable[[Iterable[NodeId]], tuple[Holder, ...]],
    ) -> None:
        self._me = me
        self._fetcher = fetcher
        self._view = view
        self._holders = holders
        self._missed: dict[str, float] = {}
        """By job: since when its checkpoint has been asked for in vain, monotonic."""

    def forget(self, job: str) -> None:
        """It is over."""
        self._missed.pop(job, None)

    async def prepare(
        self,
        job: str,
        attempt: int,
        run: RunFolder,
        checkpoint: Checkpoint,
        spec: Mapping[str, object] | None = None,
    ) -> bool:
        """Have the run's folder go on from a copied checkpoint, unless it has its own; false where it begins anew:
        `spec` forbids to go on, or the checkpoint is spoiled or gone for good.

        Raises `Unavailable` while nobody gives it, `JobRefused` when there is no room for it here, `StateUnwritable`.
        """
        if await asyncio.to_thread(has_checkpoints, run):
            return True
        owner = f"{job}{RESUME}"
        try:
            manifest = await self._newest(job, checkpoint, owner)
            await asyncio.to_thread(lay_out_run, self._fetcher.blobs, manifest, run, spec)
        except DataUnusable as error:
            log.warning("job %s: attempt %d begins anew: %s", job, attempt, error)
            return False
        except BodyTooLarge as error:
            raise JobRefused(f"there is no room for its checkpoint: {error}") from error
        except Unavailable as error:
            if self._may_return(job, checkpoint):
                raise
            log.warning("job %s: attempt %d begins anew: %s", job, attempt, error)
            return False
        finally:
            self._fetcher.blobs.unpin(owner)
        self._missed.pop(job, None)
        log.info("job %s: attempt %d goes on from %s", job, attempt, await asyncio.to_thread(_newest_of, run))
        return True

    async def _newest(self, job: str, checkpoint: Checkpoint, owner: str) -> Manifest:
        """What this checkpoint has or, where nobody gives it whole, an earlier one that is kept here."""
        others = copy_order(self._view(), self._me, job)
        holders = self._holders((*checkpoint.holders, *others))
        kept, blobs = checkpoints_of(self._fetcher.blobs, job), self._fetcher.blobs
        for one in kept:  # a disk may have damaged them since they came, and nobody would train so long for nothing
            blobs.doubt(blobs.pinned(str(one)))
        earlier = [one.artifact for one in reversed(kept) if one.step < checkpoint.step]
        missing: Unavailable | None = None
        for artifact in (checkpoint.artifact, *earlier):
            try:
                return await self._fetcher.artifact(artifact, holders, owner=owner)
            except Unavailable as error:
                missing = missing or error
        assert missing is not None, "one was tried"
        raise missing

    def _may_return(self, job: str, checkpoint: Checkpoint) -> bool:
        """Is it too early to give a checkpoint up? Whoever has it may be about to start again."""
        missed_at = self._missed.setdefault(job, time.monotonic())
        members = self._view().members
        if any(node in members and members[node].state != "down" for node in checkpoint.holders if node != self._me):
            return True
        return time.monotonic() < missed_at + GIVE_UP_S


def _newest_of(run: RunFolder) -> str:
    """Blocks."""
    try:
        return run.latest.read_text("utf-8").strip()
    except OSError:
        return "a checkpoint"
