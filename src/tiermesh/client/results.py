"""The files that a job left, fetched: each is there whole and verified, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from tiermesh.errors import DeadlineExceeded, EngineFailed, NotFound, Unavailable
from tiermesh.protocol.artifacts import ArtifactFile, Manifest
from tiermesh.protocol.jobs import ResultReport

PATIENCE_S = 60.0
"""Without a file more: a node may restart meanwhile."""
AGAIN_S = 0.5
"""Between two tries."""


class ResultDoor(Protocol):
    """What fetching needs of a client."""

    def result_chunks(self, job: str, name: str) -> AsyncIterator[bytes]: ...


async def fetch_result(door: ResultDoor, result: ResultReport, folder: Path) -> None:
    """Put all files of a result into `folder`; those that are there already are not fetched again.

    Raises `NotFound` when there are none, `EngineFailed` when what comes is not what was promised, `OSError`.
    """
    job = result.job
    if not result.files:
        raise NotFound(f"job {job.name} {_ended(result)}, and left no files")
    moved_at = time.monotonic()
    for file in _checked(result):
        while not await asyncio.to_thread(_is_there, folder / file.name, file):
            try:
                await _fetch(door, job.id, file, folder / file.name)
            except (Unavailable, EngineFailed, DeadlineExceeded):
                if time.monotonic() > moved_at + PATIENCE_S:
                    raise
                await asyncio.sleep(AGAIN_S)
        moved_at = time.monotonic()


def _checked(result: ResultReport) -> list[ArtifactFile]:
    """Names become paths here, so they are read as a stranger's."""
    try:
        return Manifest.of(ArtifactFile.model_validate(file.model_dump()) for file in result.files).files
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        raise EngineFailed(f"the files of job {result.job.name} can't be written here: {first}") from None


async def _fetch(door: ResultDoor, job: str, file: ArtifactFile, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with part.open("wb") as out:
            async for chunk in door.result_chunks(job, file.name):
                size += len(chunk)
                if size > file.size_bytes:
                    break
                digest.update(chunk)
                await asyncio.to_thread(out.write, chunk)
        if size != file.size_bytes or digest.hexdigest() != file.sha256:
            raise EngineFailed(f"{file.name} of job {job} did not come as it was promised")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _is_there(path: Path, file: ArtifactFile) -> bool:
    try:
        if path.stat().st_size != file.size_bytes:
            return False
        with path.open("rb") as there:
            return hashlib.file_digest(there, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        return False


def _ended(result: ResultReport) -> str:
    return {"failed": "failed", "cancelled": "was cancelled", "refused": "was refused"}.get(result.job.state, "ended")
