"""What a job needs, on more than one node: its data, its checkpoints, its result.

    submission   data         -> `replicas` nodes, so that the submitter's may go
    training     checkpoint   -> `checkpoint_replicas` others, as it is written, with the events so far
    the end      result       -> the nodes that are to serve it

The node that has something orders others to fetch it (`POST /mesh/v1/copies`) and asks again until they hold it; they
fetch from whichever holder gives (`GET /mesh/v1/blobs/...`). So a sender that dies costs nothing that is held already,
and a receiver that dies is replaced by the next one. On a mesh without a token nothing leaves a node by itself, unless
the job says that its data is open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.fetching import Fetcher, Holder
from tiermesh.adapters.peers import Peers
from tiermesh.adapters.run_copy import checkpoint_manifest, folder_manifest
from tiermesh.core.attempts import Checkpoint
from tiermesh.core.jobs import Dataset
from tiermesh.core.replicas import copy_order
from tiermesh.daemon.copy_leaving import RESULT, Leaving
from tiermesh.daemon.copy_resuming import RESUME, Resuming
from tiermesh.daemon.copy_sending import Sending
from tiermesh.daemon.copy_taking import CheckpointOwner, Taking, checkpoints_of, drop, drop_older
from tiermesh.errors import BodyTooLarge, JobRefused, TiermeshError, Unavailable
from tiermesh.protocol.artifacts import (
    MAX_HOLDERS,
    ArtifactFile,
    CopyKind,
    CopyOrder,
    CopyReport,
    Manifest,
)
from tiermesh.protocol.run_folder import RunFolder, checkpoint_step
from tiermesh.types import NodeId, View

log = logging.getLogger(__name__)

MAKING = ".making"
"""End of the name of who pins something for as long as it takes to list it."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """A checkpoint that is to be copied."""

    job: str
    attempt: int
    name: str
    run: RunFolder
    replicas: int


class Copies:
    """All copies that this node makes and keeps. `start` once `blobs` are open, `close`; everything on one loop.

    `is_over`: is the job over, and its result where it must be? None: unknown here. `on_copied` hears of each
    checkpoint as soon as another node holds it, again with each further holder, and when no other node can.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        blobs: Blobs,
        peers: Peers,
        view: Callable[[], View],
        token: bool,
        is_over: Callable[[str], bool | None],
        on_copied: Callable[[str, int, Checkpoint], None],
    ) -> None:
        self.blobs = blobs
        self.fetcher = Fetcher(blobs, peers)
        self._me = me
        self._peers = peers
        self._view = view
        self._token = token
        self._is_over = is_over
        self._on_copied = on_copied
        self._sending = Sending(me, peers, view)
        self._resuming = Resuming(me, self.fetcher, view=view, holders=self._found)
        self._taking = Taking(blobs, self.fetcher, holders=self._found, is_over=is_over)
        self._pending: dict[str, _Saved] = {}
        """By job: the newest checkpoint that waits for its turn."""
        self._copying: dict[str, asyncio.Task[None]] = {}
        self._leaving = Leaving(me, blobs, peers, view=view, is_over=is_over, over=self.over)

    def start(self) -> None:
        """Drop what an earlier daemon was about to use, and look after the rest."""
        for owner in self.blobs.owners():
            if owner.endswith((MAKING, RESUME)):
                drop(self.blobs, owner)
        self._leaving.start()

    async def close(self) -> None:
        """Break off what is under way; it is gone on with by whoever asks again."""
        copying = tuple(self._copying.values())
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)
        await self._leaving.close()
        await self._taking.close()

    def may_leave(self, open_data: bool) -> bool:
        """May other nodes get a copy?"""
        return self._token or open_data

    # Data

    def hold(self, job: str, datasets: Iterable[Dataset]) -> None:
        """Keep a job's data here for as long as it is not over. Raises `StateUnwritable`."""
        self.blobs.pin(f"{job}.data", [data.sha256 for data in datasets])

    async def spread(
        self,
        job: str,
        datasets: Iterable[Dataset],
        replicas: int,
        open_data: bool,
        holders: Iterable[NodeId] = (),
    ) -> tuple[NodeId, ...]:
        """Copy a job's data until `replicas` nodes have it; gives those that do. `holders` have it now; none: it is
        here. Raises `Unavailable` when it is not, and `StateUnwritable`."""
        datasets, holders = tuple(datasets), tuple(holders) or (self._me,)
        self.hold(job, datasets)
        if replicas < 2 or not self.may_leave(open_data):
            return holders
        here = self._me in holders
        sizes = {data.sha256: self._size(data) if here else data.size_bytes for data in datasets}
        named = enumerate(sorted(sizes.items()))
        manifest = Manifest.of(ArtifactFile(name=f"{n}", sha256=sha256, size_bytes=size) for n, (sha256, size) in named)
        artifact = await self.blobs.put_whole(manifest.encoded())
        self.blobs.pin(f"{job}.data", [artifact])
        self._sending.know(job, holders)
        order = self._order(job, "data", artifact, holders=holders)
        held = await self._sending.spread(order, replicas - here)
        if not here and len(held) < replicas:  # there is nobody else
            here = await self._brought(job, datasets, (*held, *holders))
        return (self._me, *held) if here else held

    async def bring(self, job: str, dataset: Dataset, holders: Iterable[NodeId]) -> Path:
        """Have a job's data here, and keep it. Raises `Unavailable`, `JobRefused` when there is no room here,
        `StateUnwritable`."""
        self.blobs.pin(f"{job}.data", [dataset.sha256])
        told = self._found(holders)
        others = [node for node in copy_order(self._view(), self._me, job) if node not in {one.node for one in told}]
        found = (*told, *self._found(others))
        try:
            return await self.fetcher.fetch(dataset.sha256, found, size_bytes=dataset.size_bytes or None)
        except BodyTooLarge as error:
            raise JobRefused(f"there is no room for {dataset.name}: {error}") from error

    async def _brought(self, job: str, datasets: Iterable[Dataset], holders: Iterable[NodeId]) -> bool:
        try:
            for data in datasets:
                await self.bring(job, data, holders)
        except TiermeshError as error:
            log.info("no copy of the data of job %s here: %s", job, error)
            return False
        return True

    # Checkpoints

    def checkpoint_saved(
        self, job: str, attempt: int, name: str, run: RunFolder, *, replicas: int, open_data: bool
    ) -> None:
        """The run has a new one: copy it, unless a newer one comes before it is its turn."""
        self._pending[job] = _Saved(job, attempt, name, run, replicas if self.may_leave(open_data) else 0)
        if job not in self._copying:
            self._copying[job] = asyncio.create_task(self._copy_checkpoints(job), name=f"copy checkpoints {job}")

    async def prepare(
        self,
        job: str,
        attempt: int,
        run: RunFolder,
        checkpoint: Checkpoint,
        spec: Mapping[str, object] | None = None,
    ) -> bool:
        """As `Resuming.prepare`."""
        return await self._resuming.prepare(job, attempt, run, checkpoint, spec)

    # Results

    async def result(self, job: str, run: RunFolder) -> str:
        """The result of a run as an artifact that is kept here. Raises `FileNotFoundError`, `StateUnwritable`."""
        owner = f"{job}{RESULT}"
        manifest = await folder_manifest(self.blobs, run.result, lambda digest: self.blobs.pin(owner, [digest]))
        artifact = await self.blobs.put_whole(manifest.encoded())
        self.blobs.pin(owner, [artifact])
        return artifact

    async def send_result(self, job: str, artifact: str, nodes: Iterable[NodeId]) -> tuple[NodeId, ...]:
        """Have these nodes keep it too; gives those that do, this one included when it is asked for."""
        order = self._order(job, "result", artifact)
        wanted = tuple(dict.fromkeys(nodes))
        held = await asyncio.gather(*(self._sending.hand_over(node, order) for node in wanted if node != self._me))
        others = (node for node in wanted if node != self._me)
        given = {node for node, done in zip(others, held, strict=True) if done}
        return tuple(node for node in wanted if node in given or node == self._me)

    async def result_folder(self, job: str, artifact: str, holders: Iterable[NodeId], target: Path) -> None:
        """The result as a folder here, fetched where it must be. Never write into it. Raises as `Fetcher` does."""
        await self.fetcher.folder(artifact, self._found(holders), target, owner=f"{job}{RESULT}")

    def forget_result(self, job: str) -> None:
        """It need not be kept here any longer."""
        self._taking.forget(f"{job}{RESULT}")
        drop(self.blobs, f"{job}{RESULT}")

    # Ends

    def over(self, job: str) -> None:
        """Nothing but its result is needed any more. Data stays while there is room: it may be learnt from again."""
        self._pending.pop(job, None)
        self._resuming.forget(job)
        self._sending.forget(job)
        self._taking.forget(f"{job}.data")
        self.blobs.unpin(f"{job}.data")
        for owner in checkpoints_of(self.blobs, job):
            self._taking.forget(str(owner))
            drop(self.blobs, str(owner))

    def known_over(self, jobs: Iterable[str]) -> list[str]:
        """As `Leaving.known_over`."""
        return self._leaving.known_over(jobs)

    async def settled(self, job: str) -> None:
        """Wait until its newest checkpoint is copied, or can't be: for a node that is about to rest."""
        if (task := self._copying.get(job)) is not None:
            await asyncio.wait((task,))

    async def take(self, order: CopyOrder) -> CopyReport:
        """Another node asks this one to keep a copy. Raises `StaleOrder`, `Unavailable`, and as `Fetcher` does."""
        return await self._taking.take(order)

    async def _copy_checkpoints(self, job: str) -> None:
        try:
            while (saved := self._pending.pop(job, None)) is not None:
                try:
                    await self._copy_checkpoint(saved)
                except FileNotFoundError:
                    log.info("job %s: %s is gone before it was copied", job, saved.name)
                except TiermeshError as error:
                    log.warning("job %s: %s could not be copied: %s", job, saved.name, error)
                except Exception:
                    log.exception("job %s: %s could not be copied", job, saved.name)
        finally:
            self._copying.pop(job, None)

    async def _copy_checkpoint(self, saved: _Saved) -> None:
        job, step = saved.job, checkpoint_step(saved.name)
        assert step is not None, "only checkpoints are saved"
        making = f"{job}{MAKING}"
        try:
            manifest = await checkpoint_manifest(
                self.blobs, saved.run, saved.name, lambda digest: self.blobs.pin(making, [digest])
            )
            artifact = await self.blobs.put_whole(manifest.encoded())
            if self._is_over(job):
                return
            owner = CheckpointOwner(job, saved.attempt, step, artifact)
            self.blobs.pin(str(owner), [artifact, *(file.sha256 for file in manifest.files)])
        finally:
            self.blobs.remove(self.blobs.unpin(making))
        drop_older(self.blobs, owner)
        holders = [self._me]

        def tell() -> None:
            self._on_copied(job, saved.attempt, Checkpoint(step, artifact, tuple(holders)))

        def held(node: NodeId) -> None:
            holders.append(node)
            tell()

        order = self._order(job, "checkpoint", artifact, attempt=saved.attempt, step=step)
        if not await self._sending.spread(order, saved.replicas, held):
            tell()  # one that this node alone has is no better than the last one while others have that

    def _order(
        self,
        job: str,
        kind: CopyKind,
        artifact: str,
        *,
        attempt: int = 0,
        step: int = 0,
        holders: Iterable[NodeId] = (),
    ) -> CopyOrder:
        """Of what is here, or with `holders`, of whose data the list is here."""
        asked = [str(node) for node in dict.fromkeys((self._me, *holders))][:MAX_HOLDERS]
        return CopyOrder(job=job, kind=kind, artifact=artifact, holders=asked, attempt=attempt, step=step)

    def _found(self, nodes: Iterable[NodeId]) -> tuple[Holder, ...]:
        """Where these are to be reached."""
        members = self._view().members
        known = (members[node] for node in dict.fromkeys(nodes) if node != self._me and node in members)
        return tuple(Holder(member.id, member.status.addresses) for member in known)

    def _size(self, data: Dataset) -> int:
        path = self.blobs.find(data.sha256)
        if path is None:
            raise Unavailable(f"this node does not have the data {data.name} any more")
        return path.stat().st_size
