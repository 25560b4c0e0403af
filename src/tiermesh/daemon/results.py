"""What a job left, wherever it is: the list of its files, and each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

from tiermesh.adapters.blobs import Blobs
from tiermesh.adapters.fetching import steady
from tiermesh.adapters.peers import Peers
from tiermesh.core.jobs import Job
from tiermesh.daemon.scheduler import Scheduler
from tiermesh.errors import NotFound, TiermeshError, Unavailable
from tiermesh.protocol.artifacts import BLOBS_PATH, MAX_MANIFEST_BYTES, Manifest
from tiermesh.protocol.jobs import ResultFile, ResultReport
from tiermesh.types import NodeId


class Results:
    """One for a node. What another node has is passed on, and not kept here."""

    def __init__(self, *, scheduler: Scheduler, blobs: Blobs, peers: Peers) -> None:
        self._scheduler = scheduler
        self._blobs = blobs
        self._peers = peers

    async def report(self, key: str) -> ResultReport:
        """Of a job that left nothing yet, an empty one. Raises `NotFound`."""
        job = await self._scheduler.find(key)
        manifest = None
        with suppress(Unavailable, NotFound):
            manifest = await self._manifest(job)
        files = [] if manifest is None else [ResultFile(**file.model_dump()) for file in manifest.files]
        return ResultReport(job=self._scheduler.report(job), artifact=_artifact(job), files=files)

    async def file(self, key: str, name: str) -> tuple[Path | AsyncGenerator[bytes, None], int]:
        """One file, here or as its bytes from elsewhere, and its size. Raises `NotFound`, `Unavailable`."""
        job = await self._scheduler.find(key)
        if not _artifact(job):
            raise NotFound(f"job {job.name} is {job.state} and has no result")
        found = next((file for file in (await self._manifest(job)).files if file.name == name), None)
        if found is None:
            raise NotFound(f"the result of job {job.name} has no file {name!r}")
        here = self._blobs.find(found.sha256)
        return here or self._remote(job, found.sha256), found.size_bytes

    async def _manifest(self, job: Job) -> Manifest:
        artifact = _artifact(job)
        if not artifact:
            raise NotFound(f"job {job.name} has no result")
        if (path := self._blobs.find(artifact)) is not None:
            return Manifest.read(await asyncio.to_thread(path.read_bytes))
        content = b""
        async with aclosing(self._remote(job, artifact)) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) > MAX_MANIFEST_BYTES:
                    raise Unavailable(f"the list of the files of job {job.name} is too long")
        return Manifest.read(content)

    async def _remote(self, job: Job, sha256: str) -> AsyncGenerator[bytes, None]:
        """From the first holder that has it."""
        reasons = []
        for node in _holders(job):
            member = self._scheduler.member(node)
            if member is None or member.state == "down":
                reasons.append(f"{self._scheduler.node_name(node)} is away")
                continue
            begun = False
            try:
                async with self._peers.read(node, member.status.addresses, BLOBS_PATH + sha256) as response:
                    async for piece in steady(response.content):
                        begun = True
                        yield piece
                return
            except TiermeshError as error:
                if begun:
                    raise
                reasons.append(str(error))
        raise Unavailable(f"the result of job {job.name} can't be had: {'; '.join(reasons) or 'nobody has it'}")


def _artifact(job: Job) -> str:
    told = None if job.result is None else job.result.told
    return "" if told is None else told.artifact


def _holders(job: Job) -> list[NodeId]:
    result = job.result
    told = None if result is None else result.told
    if result is None or told is None:
        return []
    return list(dict.fromkeys((result.node, *told.holders)))
